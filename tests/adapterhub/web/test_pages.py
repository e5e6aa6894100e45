"""Every page answers, says what it is, and lets nothing through that visitors wrote as code."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree

import httpx
import pytest

from tests.adapterhub.conftest import HubServer

from .addresses import LOGGED_IN, PAGES
from .sample import EVIL


def title(html: str) -> str:
    match = re.search("<title>(.*?)</title>", html, re.S)
    assert match is not None
    return match[1]


def text_of(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", html))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_its_title(visitor: httpx.Client, path: str) -> None:
    answer = visitor.get(path)
    assert answer.status_code == 200
    assert PAGES[path] in title(answer.text)
    assert "<h1" in answer.text


@pytest.mark.parametrize("path", LOGGED_IN)
def test_a_page_of_members_has_its_title_and_sends_visitors_to_the_login(
    alice: httpx.Client, visitor: httpx.Client, path: str
) -> None:
    answer = alice.get(path)
    assert answer.status_code == 200
    assert LOGGED_IN[path] in title(answer.text)
    assert visitor.get(path).text != answer.text


@pytest.mark.parametrize("path", [*PAGES, "/nowhere/at-all"])
def test_a_page_runs_no_inline_code_and_names_no_other_host(site: HubServer, visitor: httpx.Client, path: str) -> None:
    answer = visitor.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"\son[a-z]+=|\sstyle=|javascript:|<style", answer.text)
    assert all("src=" in tag for tag in re.findall("<script[^>]*>", answer.text))
    assert not re.findall(r"(?:src|action)=[\"'](?:https?:)?//", answer.text)


@pytest.mark.parametrize(
    "path",
    [
        "/", "/adapters?q=evil", "/adapters?q=" + EVIL, "/bob", "/bob/evil", "/bob/evil/config", "/bob/evil/checks",
        "/bob/evil/versions", "/bob/evil/commit/main", "/bob/evil/blob/main/notes.txt", "/bob/evil/blob/main/README.md",
        "/bob/evil/discussions", "/bob/evil/discussions/1", "/explore/sentiment/sst-2", "/models/" + EVIL,
        "/explore/" + EVIL, "/bob/" + EVIL,
    ],
)  # fmt: skip
def test_what_visitors_write_is_text(visitor: httpx.Client, path: str) -> None:
    html = visitor.get(path).text
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_evil_text_is_shown_where_it_stands(visitor: httpx.Client) -> None:
    """So that the test above tests something."""
    for path in ("/bob/evil/config", "/bob/evil/versions", "/bob/evil/discussions"):
        assert "&lt;script&gt;alert(1)" in visitor.get(path).text


@pytest.mark.parametrize("rest", ["", "/config", "/tree/main", "/discussions/1", "/blob/main/README.md"])
def test_a_private_repository_looks_like_one_that_is_not_there(visitor: httpx.Client, rest: str) -> None:
    private, absent = (visitor.get(f"/bob/{name}{rest}") for name in ("secret", "absent"))
    assert private.status_code == absent.status_code == 404
    assert private.text.replace("secret", "absent") == absent.text


def test_facets_narrow_the_list_by_its_address(visitor: httpx.Client) -> None:
    def names(query: str) -> list[str]:
        return re.findall(r'<h3><a href="/([^"]+)"', visitor.get("/adapters" + query).text)

    every, lora = names(""), names("?method=lora")
    assert lora == ["acme/roberta-sst2-lora"]
    assert set(names("?base_model=roberta-base")) < set(every)
    assert names("?q=swahili") == ["acme/xlmr-swahili"]
    assert names("?task=sentiment&base_model=bert-base-uncased&config_name=double_seq_bn") == ["acme/bert-sst2-houlsby"]
    assert names("?rank_max=4&method=lora") == []
    assert names("?sort=parameters") != every
    assert "No adapter fits" in visitor.get("/adapters?q=nothing-like-it").text


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("movie review", "Matches the data set SST-2"),
        ("sentment", "none fits “sentment”"),
        ("question answring machine", "Did you mean <a"),
    ],
)
def test_the_search_says_why_what_instead_and_what_else(visitor: httpx.Client, words: str, shown: str) -> None:
    page = visitor.get("/adapters", params={"q": words}).text
    assert shown in page and '<option value="relevance" selected>Best match' in page
    assert "Best match" not in visitor.get("/adapters").text


def test_facet_links_set_and_unset_a_filter(visitor: httpx.Client) -> None:
    html = visitor.get("/adapters?q=sst&method=lora").text
    assert re.search(r'class="facet" href="\?q=sst" aria-current="true"><span>lora', html)
    assert re.search(r'href="\?q=sst&amp;method=ia3"', html)


def test_a_filter_that_is_no_number_is_explained(visitor: httpx.Client) -> None:
    answer = visitor.get("/adapters?rank_max=many")
    assert answer.status_code == 400
    assert "rank_max=&#39;many&#39; must be a whole number from 0 to 2147483647" in answer.text


def test_the_leaderboard_is_in_order(visitor: httpx.Client) -> None:
    html = visitor.get("/explore/sentiment/sst-2?view=leaderboard").text
    scores = [float(text) for text in re.findall(r'<td class="number"><b>([0-9.]+)</b>', html)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 0.946
    assert '<svg class="plot"' in html
    assert 'text-anchor="end">roberta-sst2-lora</text>' in html  # at the right edge, its name stands on the left


def test_the_api_is_described(visitor: httpx.Client) -> None:
    html = visitor.get("/docs/api").text
    assert "<code>/api/v1/adapters</code>" in html
    assert "is sent as <code>%2F</code>" in html


def test_addresses_of_the_old_hub_still_lead_somewhere(site: HubServer) -> None:
    with httpx.Client(base_url=site.url, trust_env=False) as client:
        answer = client.get("/explore/sentiment/sst-2/bert/bert-base-uncased/")
        assert answer.headers["location"] == "/explore/sentiment/sst-2?base_model=bert-base-uncased"
        assert client.get("/explore/sentiment/sst-2/bert").headers["location"].endswith("?model_type=bert")


def test_the_config_page_shows_where_the_adapter_sits(visitor: httpx.Client) -> None:
    html = visitor.get("/acme/bert-mrpc-mam/config").text
    assert "<svg" in html
    assert "a learned prefix (30 tokens)" in html


def test_versions_can_be_compared(visitor: httpx.Client, site: HubServer) -> None:
    html = visitor.get("/alice/bert-sst2/versions").text
    old = re.findall(r"/alice/bert-sst2/commit/([0-9a-f]{40})", html)[1]
    changed = visitor.get(f"/alice/bert-sst2/versions?from={old}&to=main").text
    assert '<span class="minus">-    &#34;reduction_factor&#34;: 16,' in changed
    assert '<span class="plus">+    &#34;reduction_factor&#34;: 32,' in changed
    assert "Nothing changed" in visitor.get("/alice/bert-sst2/versions?from=v1.0&to=main").text


def test_the_card_has_snippets_for_this_hub(visitor: httpx.Client, site: HubServer) -> None:
    html = visitor.get("/alice/bert-sst2").text
    assert f"adapters.hub.use('{site.url}')" in text_of(html)
    assert "model.load_adapter('alice/bert-sst2', set_active=True)" in text_of(html)
    oid = re.search(r"\?revision=([0-9a-f]{40})", html)
    assert oid is not None
    assert f"version='{oid[1]}'" in text_of(visitor.get(f"/alice/bert-sst2?revision={oid[1]}").text)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/nobody", 404, "Search for"),
        ("/nobody/nothing", 404, "There is no such adapter"),
        ("/alice/bert-sst2/tree/no-branch", 404, "no-branch"),
        ("/alice/bert-sst2/blob/main/no-file", 404, "no-file"),
        ("/alice/bert-sst2/discussions/99", 404, "99"),
        ("/explore/sentimnt", 404, "Did you mean sentiment"),
        ("/explore/sentiment/sst-3", 404, "Did you mean"),
        ("/architectures/nonsense", 404, "/architectures"),
        ("/docs/nonsense", 404, "start"),
    ],
)
def test_an_error_page_says_what_to_do_next(visitor: httpx.Client, path: str, status: int, words: str) -> None:
    answer = visitor.get(path)
    assert answer.status_code == status
    assert words in answer.text
    assert 'href="/docs"' in answer.text


def test_a_program_gets_errors_as_json(site: HubServer) -> None:
    answer = httpx.get(f"{site.url}/nobody/nothing", trust_env=False)
    assert answer.json()["error"]


def test_feed_and_site_map_are_xml_of_public_adapters(visitor: httpx.Client) -> None:
    for path in ("/atom.xml", "/sitemap.xml"):
        text = visitor.get(path).text
        ElementTree.fromstring(text)
        assert "/alice/bert-sst2" in text
        assert "secret" not in text
    assert "sitemap.xml" in visitor.get("/robots.txt").text


def test_links_inside_the_site_lead_somewhere(visitor: httpx.Client) -> None:
    """Every link of some pages, once."""
    seen = set()
    for path in ("/", "/alice/bert-sst2", "/acme/xlmr-english-sst2", "/docs", "/explore/text_lang"):
        for link in re.findall(r'href="(/[^"#?]*)', visitor.get(path).text):
            if link not in seen and len(seen) < 120:
                seen.add(link)
                assert visitor.get(link).status_code == 200, f"{path} links to {link}"
    assert len(seen) > 40
