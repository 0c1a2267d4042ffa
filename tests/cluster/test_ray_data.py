"""What goes wrong in Ray Data's workers reaches the driver as an error of ours, word for word."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import ray.data

from llavamed.errors import ConfigError, DataError, LlavaMedError, SampleError, StorageError
from llavamed.parallel.pipeline import CarriedError, carry_errors, configure_ray_data, iter_rows
from tests.support.log_messages import on_log

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ERRORS: dict[str, tuple[Exception, type[LlavaMedError], str]] = {
    "data": (
        DataError("path=x: cut off; get it again"),
        DataError,
        "path=x: cut off; get it again",
    ),
    "config": (ConfigError("template=x: bad; use y"), ConfigError, "template=x: bad; use y"),
    "storage": (StorageError("s3: away; wait"), StorageError, "s3: away; wait"),
    "sample": (SampleError("why", "what"), SampleError, "why: what"),
    "mistake": (
        TypeError("no number\nand more lines"),
        LlavaMedError,
        "TypeError: no number: the program failed while it processed data, and no sample is to "
        "blame; see where with --debug, and report it",
    ),
}


def failing(error: Exception) -> Callable[[dict[str, Any]], dict[str, Any]]:
    class Fail:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            with carry_errors():
                raise error

    return Fail  # type: ignore[return-value]


def test_what_workers_warn_of_reaches_the_log_of_the_driver() -> None:
    class Warn:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            with carry_errors():
                logging.getLogger("llavamed.of.a.worker").warning("row %d is odd", batch["id"][0])
                logging.getLogger("llavamed.of.a.worker").info("not so important")
            return batch

    configure_ray_data()
    said: list[str] = []
    for _ in range(2):  # the second pipeline of a driver is heard, too
        pipeline = ray.data.range(3, override_num_blocks=3).map_batches(
            Warn, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5
        )
        with on_log(said.append):
            assert len(list(iter_rows(pipeline))) == 3
    assert sorted(said) == sorted(2 * [f"row {number} is odd" for number in range(3)])


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_in_a_worker_is_the_error_of_the_command(name: str) -> None:
    error, kind, message = ERRORS[name]
    configure_ray_data()
    pipeline = ray.data.range(1).map_batches(
        failing(error), compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5
    )
    with pytest.raises(kind) as caught:
        list(iter_rows(pipeline))
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_an_error_that_cannot_be_pickled_is_named_all_the_same() -> None:
    class Local(Exception):
        pass

    with pytest.raises(CarriedError) as caught, carry_errors():
        raise Local("hm")
    assert repr(caught.value.unpack()) == "RuntimeError('Local: hm')"
