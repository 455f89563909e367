"""Conformance tests over the registries, for this package's methods and backbones and for those of plug-ins.

Run them on the method or backbone of a plug-in: `pytest --pyargs fedfms.testing -k NAME`. `check_dataset` tests a data
set.
"""

from fedfms.testing.datasets import check_dataset

__all__ = ["check_dataset"]
