"""Prepare the datasets of a config: `ray job submit --working-dir . -- python ray_jobs/prepare.py`.

Without `--config` it takes the file that LLAVAMED_CONFIG names, else the demo.
"""

from job import run_command

if __name__ == "__main__":
    run_command("prepare")
