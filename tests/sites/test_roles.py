"""The one table of roles, and what is made of it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import get_args

from adapters.methods import METHODS
from adapters.sites import roles
from adapters.sites.roles import ROLES, Kind
from adapters.sites.site import SITES


def test_every_role_is_drawn_and_every_drawn_place_is_a_role() -> None:
    """Branches, cores and what stands alone in round brackets, norms in square ones, linear maps without."""
    drawing = roles.__doc__ or ""
    drawn = set(re.findall(r"[(\[]((?:embed|attn|cross|ffn|layer)[a-z.]*)[)\]]", drawing))
    drawn |= set(re.findall(r"[> ]((?:attn|cross|ffn)\.\w+) ", drawing))
    assert drawn == set(ROLES) - {"embed.prompt"}


def test_every_role_has_words_of_its_own_and_a_kind_that_is_used() -> None:
    words = [role.words for role in ROLES.values()]
    assert len(set(words)) == len(words) and all(words)
    assert {role.kind for role in ROLES.values()} == set(get_args(Kind))
    assert set(SITES) == set(get_args(Kind)) - {"output"}


def test_the_page_is_made_of_the_table() -> None:
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "scripts" / "places_page.py"))
    assert script["TARGET"] == root / "docs" / "places.md"
    assert script["TARGET"].read_text(encoding="utf-8") == script["page"](), "run scripts/places_page.py"


def test_sites_name_no_method() -> None:
    """What is added at a place is no concern of what says where it is."""
    folder = Path(roles.__file__).parent
    names = {method.__name__.lower() for method in METHODS} | {"lora", "bottleneck", "prefix_tuning", "prompt_tuning"}
    pattern = re.compile(rf"\b({'|'.join(sorted(names))})\b", re.IGNORECASE)
    found = {path.name: pattern.findall(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py")}
    assert not {name: words for name, words in found.items() if words}
