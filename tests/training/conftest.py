"""Fixtures of the tests that train."""

from tests.support.driver_without_ray import done

__all__ = ["done"]
