"""Addresses of every kind of page that the sample shows, and the routes that show none."""

from __future__ import annotations

from starlette.routing import compile_path

from adapterhub import web
from tests.adapterhub.acceptance.routes import routes as every_route

# Address -> what its title says.
PAGES = {
    "/": "AdapterHub",
    "/explore/text_task": "Tasks",
    "/explore/text_lang": "Languages",
    "/explore/sentiment": "Sentiment Analysis",
    "/explore/sentiment/sst-2": "SST-2",
    "/explore/sentiment/sst-2?view=leaderboard": "SST-2",
    "/adapters": "Adapters",
    "/adapters?q=swahili": "“swahili”",
    "/adapters?q=nothing-like-it": "“nothing-like-it”",
    "/architectures": "Methods",
    "/architectures/mam": "Mix-and-Match",
    "/architectures/houlsby": "Double sequential bottleneck",
    "/architectures/lohfink-rossi-leaveout": "Lohfink-Rossi",
    "/models": "Base models",
    "/collections": "Collections",
    "/collections/alice/films": "Film reviews",
    "/models/bert-base-uncased": "Adapters for bert-base-uncased",
    "/models/bert-base-uncased?place=sentiment/sst-2": "Adapters for bert-base-uncased",
    "/models?model_type=bert&hidden_size=768&layers=12": "Adapters for bert of size 768",
    "/alice": "Alice",
    "/acme": "Acme",
    "/alice/bert-sst2": "alice/bert-sst2",
    "/alice/bert-sst2?revision=v1.0": "alice/bert-sst2",
    "/alice/bert-sst2/config": "Config of alice/bert-sst2",
    "/alice/bert-sst2/tree/main": "Files of alice/bert-sst2",
    "/alice/bert-sst2/tree/feat%2Flonger": "Files of alice/bert-sst2",
    "/alice/bert-sst2/tree/refs%2Fpr%2F2": "Files of alice/bert-sst2",
    "/alice/bert-sst2/tree/refs%2Fpr%2F2/logs": "Files of alice/bert-sst2",
    "/alice/bert-sst2/blob/main/README.md": "README.md",
    "/alice/bert-sst2/blob/main/adapter_config.json": "adapter_config.json",
    "/alice/bert-sst2/blob/feat%2Flonger/adapter.safetensors": "adapter.safetensors",
    "/alice/bert-sst2/versions": "Versions of alice/bert-sst2",
    "/alice/bert-sst2/commits/feat%2Flonger": "Versions of alice/bert-sst2",
    "/alice/bert-sst2/commit/main": "Train longer",
    "/alice/bert-sst2/results": "Results of alice/bert-sst2",
    "/acme/xlmr-swahili/results": "Results of acme/xlmr-swahili",
    "/alice/bert-sst2/checks": "Checks of alice/bert-sst2",
    "/alice/bert-sst2/discussions": "Discussions of alice/bert-sst2",
    "/alice/bert-sst2/discussions/1": "Which seed was this?",
    "/alice/bert-sst2/discussions/3": "Report a score that cannot be",
    "/login": "Log in",
    "/signup": "New account",
    "/setup/a-key": "Set up",
    "/docs": "Five-minute guide",
    "/docs/push": "Push an adapter",
    "/docs/find": "Find an adapter",
    "/docs/api": "API",
    "/docs/checks": "Checks",
}
LOGGED_IN = {
    "/upload": "Upload an adapter",
    "/upload?repo=alice/bert-sst2": "Change alice/bert-sst2",
    "/confirm": "Your password, please",
    "/settings/profile": "Profile",
    "/settings/tokens": "Access tokens",
    "/organizations/new": "New organisation",
    "/acme?tab=members": "Acme",
    "/alice/bert-sst2/settings": "Settings of alice/bert-sst2",
    "/alice/bert-sst2/discussions/new": "New discussion",
    "/alice/bert-sst2/discussions/2": "Say it in fewer words",
    "/watching": "Watching",
    "/collections/new": "New collection",
    "/collections/new?edit=alice/films": "Change a collection",
    "/admin": "Administration",
    "/admin?tab=audit": "Administration",
    "/admin?tab=jobs": "Administration",
}
# Route -> why it is no page.
NO_PAGES = {
    "/explore": "leads to the tasks",
    "/explore/{task}/{subtask}/{model_type}": "leads to the data set; the old hub had it",
    "/explore/{task}/{subtask}/{model_type}/{model:path}": "leads to the data set; the old hub had it",
    "/new": "leads to the upload",
    "/settings": "leads to the profile",
    "/atom.xml": "a feed",
    "/sitemap.xml": "for crawlers",
    "/robots.txt": "for crawlers",
    "/favicon.ico": "an image",
}


def routes() -> list[str]:
    """The routes of the site that answer GET, as they are written, in the order in which they are asked."""
    return [route.path for route in every_route(web) if route.method == "GET"]


def route_of(address: str) -> str:
    """The route that answers an address."""
    return next(route for route in routes() if compile_path(route)[0].match(address.partition("?")[0]))
