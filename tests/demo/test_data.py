"""Is the demo's data set what it claims: deterministic, labelled, and without a text in both halves?"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from demo import data
from demo.data import Dataset, Example

DEMO = Path(data.__file__).parent


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return data.load()


def test_size(dataset: Dataset) -> None:
    assert len(dataset.train) + len(dataset.test) > 3000
    assert 0.15 < len(dataset.test) / (len(dataset.train) + len(dataset.test)) < 0.35


def test_labels_are_areas_and_all_occur_in_both_halves(dataset: Dataset) -> None:
    assert dataset.labels == tuple(sorted(dataset.labels))
    assert set(dataset.labels) <= set(data.AREAS)
    assert len(dataset.labels) >= 9
    for half in (dataset.train, dataset.test):
        assert {example.area for example in half} == set(dataset.labels)


def test_no_module_in_two_areas() -> None:
    modules = Counter(module for modules in data.AREAS.values() for module in modules)
    assert modules.most_common(1)[0][1] == 1


def test_no_text_twice_and_no_object_in_both_halves(dataset: Dataset) -> None:
    keys = [example.key for example in dataset.train + dataset.test]
    assert len(keys) == len(set(keys))
    assert not {example.origin for example in dataset.train} & {example.origin for example in dataset.test}


def test_no_near_copy_of_a_test_text_is_trained_on(dataset: Dataset) -> None:
    test = [data.triples(example) for example in dataset.test]
    for example in dataset.train[:200]:
        own = data.triples(example)
        assert all(len(own & other) <= data.NEAR_COPY * len(own) for other in test)


def test_texts_are_clean(dataset: Dataset) -> None:
    for example in dataset.train + dataset.test:
        assert data.MIN_WORDS <= len(example.key.split())
        assert len(example.text) <= data.MAX_CHARACTERS
        assert example.text == " ".join(example.text.split())


@pytest.mark.slow
def test_same_order_in_a_new_process_with_another_hash_seed(dataset: Dataset) -> None:
    code = "import data; d = data.load(); print([data.digest(e.text + e.area) for e in d.train + d.test])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=DEMO,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(DEMO), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ast.literal_eval(done.stdout) == [
        data.digest(example.text + example.area) for example in dataset.train + dataset.test
    ]


def test_balanced_takes_the_first_of_each_area(dataset: Dataset) -> None:
    subset = data.balanced(dataset.train, 7)
    assert Counter(example.area for example in subset) == dict.fromkeys(dataset.labels, 7)
    assert subset == [example for example in dataset.train if example in subset]


def test_cleaning() -> None:
    text = "Run it.\n-------\nSee asyncio.run and\n   asyncio.\n\n>>> run()\n42\n\nEnd."
    assert data.clean(text, "asyncio.runners") == "Run it. See run and asyncio. End."
    assert data.clean("a" * 10 + " " + "b" * 700, "os") == "a" * 10


def test_texts_of_two_areas_and_near_copies_go() -> None:
    def example(text: str, area: str = "text") -> Example:
        return Example(text, area, "re.x")

    shared = [example("Close the file now."), example("close the FILE, now", "mail")]
    assert data.without_copies(shared) == []
    assert len(data.without_copies([example("Close the file"), example("Close the file!")])) == 1
    test = [example("open the given file for reading and return it")]
    near = example("open the given file for reading")
    far = example("close every connection of the server first")
    assert data.without_near_copies([near, far], test) == (far,)


def test_a_folder_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="sources"):
        data.load(tmp_path)
