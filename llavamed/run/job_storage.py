"""Choose where a submitted job writes, since `ray job submit` runs it in a temporary folder.

With `--working-dir` the driver's folder is a copy in Ray's package cache. Every changed file makes
another copy, and Ray may delete it at any time. So a relative path to write to is resolved in a
folder in the head's home directory, which lasts and is the same for every submission.
"""

import os
from pathlib import Path

from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the driver of a submitted job, and for nothing else."""


def job_folder() -> Path:
    """Return the folder of this machine in which relative paths of a submitted job are resolved."""
    return Path.home() / "llavamed"


def settle_storage(config: RunConfig) -> RunConfig:
    """Return the config with paths to write to that outlast a submitted job.

    Outside of a job, and if the paths are absolute or URIs, the config stays as it is.
    """
    if IN_A_JOB not in os.environ:
        return config
    data = config.data
    if data.directory is not None:
        data = data.model_copy(update={"directory": _settled(data.directory)})
    return config.model_copy(update={"storage": _settled(config.storage), "data": data})


def check_storage(config: RunConfig, num_machines: int) -> None:
    """Refuse a folder that only the head has if other machines would write there too.

    Raises:
        ConfigError: A path was relative, and the job runs on a cluster of several machines.
    """
    if IN_A_JOB not in os.environ or num_machines < 2:
        return
    for key, uri in (("storage", config.storage), ("data.directory", config.datasets_directory)):
        if Path(uri).is_relative_to(job_folder()):
            raise ConfigError(
                f"{key}={uri}: is a folder of the head alone, and the cluster has {num_machines} "
                "machines; set it to an object store, or to the absolute path of a folder that "
                "all of them share"
            )


def _settled(uri: str) -> str:
    is_relative = "://" not in uri and not Path(uri).expanduser().is_absolute()
    return str(job_folder() / uri) if is_relative else uri
