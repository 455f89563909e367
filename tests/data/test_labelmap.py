"""Masks to one map of label values and back, for nested and exclusive structures, and for those without a map."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedfms.data.labelmap import label_map, own_values

NESTED, APART = [(1, 2), (2,)], [(1,), (2,)]


@pytest.mark.parametrize(
    ("structures", "own"),
    [
        (NESTED, (1, 2)),
        (APART, (1, 2)),
        ([(3, 1)], (1,)),
        ([(1, 2, 3), (2, 3), (3,)], (1, 2, 3)),
        ([(2,), (1, 2)], (2, 1)),  # the order in the study does not matter
        ([(1, 2), (1,), (2,)], None),  # the first has no value that the others lack
        ([(1, 2), (2, 3)], None),
        ([(1,), (1,)], None),
    ],
)
def test_each_structure_has_its_own_value_or_there_is_no_map(structures, own) -> None:
    assert own_values(structures) == own


@given(arrays(np.uint8, (4, 5), elements=st.integers(0, 3)))
def test_masks_of_a_map_give_the_same_map(label) -> None:
    for structures in (NESTED + [(3,)], [(1,), (2,), (3,)], [(3, 2, 1), (3, 2), (2,)]):
        masks = np.stack([np.isin(label, values) for values in structures])
        np.testing.assert_array_equal(label_map(masks.astype(float), masks, structures), label)


def test_an_inner_structure_stays_where_the_outer_one_was_missed() -> None:
    masks = np.array([[[True, True, False, False]], [[False, True, True, False]]])
    assert label_map(masks.astype(float), masks, NESTED).tolist() == [[1, 2, 2, 0]]


def test_of_two_exclusive_structures_the_more_probable_is_drawn() -> None:
    found = np.array([[[0.9, 0.6, 0.7]], [[0.6, 0.9, 0.7]]])
    assert label_map(found, found >= 0.5, APART).tolist() == [[1, 2, 1]]


def test_structures_without_a_map_are_rejected() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        label_map(np.ones((2, 1, 1)), np.ones((2, 1, 1), bool), [(1, 2), (2, 3)])
