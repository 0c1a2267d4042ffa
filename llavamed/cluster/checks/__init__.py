"""The checks of `doctor`: pure functions over the objects of a cluster, each yielding problems."""
