"""A hub with something in it: an organisation, and four small adapters that are trained here, on real text.

    python scripts/hub_example.py [--data FOLDER] [--port N] [--no-wait]

What is there already is kept: the second start trains nothing. The task, the texts and the base model are those of the
demo: which area of the standard library does a docstring come from?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "0"  # the hub is on this machine
sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

ORG, USER = "example", "demo"
BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TASK = {
    "type": "text_task",
    "id": "docstring",
    "displayname": "Docstring Classification",
    "description": "What is a piece of documentation about?",
}
SUBTASK = {
    "task": "docstring",
    "id": "stdlib-area",
    "type": "text_task",
    "displayname": "Areas of the standard library",
    "description": "From which area of Python's standard library is a docstring? Eleven classes.",
    "datasets_id": "python-docstrings",
    "language": "en",
    "metric": "accuracy",
    "higher_is_better": True,
}
# name: (config of the adapter, peak learning rate, what is trained)
ADAPTERS = {
    "docstring-bottleneck": ("seq_bn", 3e-3, "a small layer after each feed-forward block"),
    "docstring-lora": ("lora", 6e-3, "low-rank updates of the query and value matrices"),
    "docstring-ia3": ("ia3", 2e-2, "factors of keys, values and inner activations"),
    "docstring-prefix": ("prefix_tuning[bottleneck_size=64]", 2e-3, "learned keys and values before the real ones"),
}


def main() -> None:
    """Starts the hub, fills it, tells how to use it, and waits."""
    parser = argparse.ArgumentParser(description="Start a hub with an example organisation and trained adapters.")
    parser.add_argument("--data", type=Path, default=Path("hub-data-example"), help="folder of the hub's data")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--no-wait", action="store_true", help="stop the hub when it is filled")
    args = parser.parse_args()
    url = f"http://127.0.0.1:{args.port}"
    login = asyncio.run(prepare(args.data))
    command = [sys.executable, "-m", "adapterhub", "serve", "--data", str(args.data), "--port", str(args.port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(url, server)
        fill(url, login["token"])
        tell(url, login)
        if not args.no_wait:
            server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


async def prepare(data: Path) -> dict[str, str]:
    """Makes the user, the organisation and the task, once; returns the user's password and token."""
    from adapterhub import accounts
    from adapterhub.db import schema
    from adapterhub.db.engine import insert_missing
    from adapterhub.hub import Hub
    from adapterhub.ops.setup import prepare
    from adapterhub.settings import Settings

    kept = data / "example.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    hub = await Hub.open(Settings(data=data))
    try:
        await prepare(hub)
        login = {"user": USER, "password": secrets.token_urlsafe(9)}
        async with hub.db.write() as conn:
            user = await accounts.create_user(conn, USER, login["password"], fullname="Demo", is_admin=True)
            await accounts.create_org(conn, ORG, user, fullname="Example organisation")
            login["token"] = await accounts.create_token(conn, user, "example", "write")
            await insert_missing(conn, schema.task, [TASK])
            await insert_missing(conn, schema.subtask, [SUBTASK])
    finally:
        await hub.close()
    kept.touch(mode=0o600)
    kept.write_text(json.dumps(login))
    return login


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Waits until the hub answers.

    Raises:
        SystemExit: it did not start; it has said why.
    """
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("The hub did not start.")


def fill(url: str, token: str) -> None:
    """Trains and pushes the adapters that are not on the hub yet."""
    from huggingface_hub import HfApi

    present = {model.id for model in HfApi(url, token=token).list_models(author=ORG)}
    missing = [name for name in ADAPTERS if f"{ORG}/{name}" not in present]
    if not missing:
        return
    import adapters

    texts, settings = read_texts()
    adapters.hub.use(url, token)
    for name in missing:
        config, learning_rate, idea = ADAPTERS[name]
        print(f"Training {name}: {idea} …", flush=True)
        model, found = train(name, config, learning_rate, texts, settings)
        accuracy = round(found["accuracy"], 4)
        result = {**RESULT, "metric": "accuracy", "value": accuracy}
        about = {
            "task": "docstring/stdlib-area",
            "license": "apache-2.0",
            "language": "en",
            "description": f"An example, trained in {found['seconds']:.0f} s on the machine of this hub: {idea}.",
            "results": [result],
        }
        model.push_adapter_to_hub(f"{ORG}/{name}", name, adapter_card_kwargs=about)
        print(f"  accuracy {accuracy:.3f} after {found['seconds']:.0f} s → {url}/{ORG}/{name}", flush=True)


RESULT = {"dataset": "python-docstrings", "name": "Docstrings of the standard library", "split": "test"}


def read_texts() -> tuple[Any, Any]:
    """A part of the demo's texts, and its settings."""
    import base
    import data

    dataset = data.load()
    settings = base.Settings("", base.default_model(), (), 1, per_area=30, epochs=1, max_tokens=32, batch_size=16)
    halves = [
        tuple((example.text, dataset.labels.index(example.area)) for example in data.balanced(half, settings.per_area))
        for half in (dataset.train, dataset.test)
    ]
    return base.Texts(tuple(dataset.labels), *halves), settings


def train(name: str, config: str, learning_rate: float, texts: Any, settings: Any) -> tuple[Any, dict[str, float]]:
    """Trains an adapter with a head; returns the model and its figures on the test texts."""
    import base
    import learn
    from methods import Method
    from transformers import set_seed

    import adapters

    base.quiet()
    tokenizer = base.load_tokenizer(settings)
    set_seed(0)
    model = adapters.AutoAdapterModel.from_pretrained(settings.model)
    model.config.name_or_path = BASE_MODEL
    model.add_adapter(name, config=config)
    model.add_classification_head(name, num_labels=len(texts.labels), layers=1, id2label=dict(enumerate(texts.labels)))
    model.train_adapter(name)
    examples = base.encode(texts.train, tokenizer, settings)
    steps = -(-len(examples) // settings.batch_size) * settings.epochs
    method = Method(name, config, learning_rate, "")
    seconds = learn.fit(model, method, settings, examples, tokenizer, steps, bar=False)
    logits = base.predict(model, [text for text, _ in texts.test], tokenizer, settings)
    return model, {**base.scores(logits.argmax(-1).tolist(), [label for _, label in texts.test]), "seconds": seconds}


def tell(url: str, login: dict[str, str]) -> None:
    """Prints where the hub is and how to use it."""
    print(
        f"""
The hub is at {url}
  log in as     {login["user"]}, password {login["password"]}
  its token     {login["token"]}

In a shell:     export HF_ENDPOINT={url} HF_TOKEN={login["token"]}
In Python:      adapters.hub.use("{url}")
                model.load_adapter("{ORG}/docstring-lora")

Ctrl-C ends it. The data stay for the next start.""",
        flush=True,
    )


if __name__ == "__main__":
    main()
