"""Score the models of a run: `ray job submit --working-dir . -- python ray_jobs/evaluate.py`.

Without `--config` it takes the file that LLAVAMED_CONFIG names, else the demo.
"""

from job import run_command

if __name__ == "__main__":
    run_command("evaluate")
