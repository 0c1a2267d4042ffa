"""Run the whole curriculum: `ray job submit --working-dir . -- python ray_jobs/train.py`.

Without `--config` it takes the file that LLAVAMED_CONFIG names, else the demo.
"""

from job import run_command

if __name__ == "__main__":
    run_command("train")
