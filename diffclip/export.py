"""A trained model for others: weights with their configuration, and a model card that says where everything came from.

The folder is laid out as a repository on the hub: `model.safetensors` (create_model(checkpoint=folder) needs nothing else),
`config.json` (the run's), `README.md` (the card), `metrics.csv` (the curves) and `results.csv` (the scores), the last where there are any.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from diffclip import __version__, paths
from diffclip.files import write_text
from diffclip.hub import HubError, is_offline, is_repo_id
from diffclip.model import WEIGHTS_NAME, load_model, save_model
from diffclip.released import save_released
from diffclip.run_folder import RunFolder
from diffclip.training import Run, TrainingError, load_run

RELEASED_NAME = "released_keys.safetensors"


def export(run: Run | str | Path, folder: str | Path, *, released_keys: bool = False) -> Path:
    """Write a finished run to `folder` in the hub's layout and return the folder.

    released_keys: add the weights under the key names of the authors' checkpoints, for code that expects those.
    Raises FileNotFoundError if there is no run, TrainingError if it is not finished, ValueError if `folder` is the run's
    own or holds files that are not an export's.
    """
    run = run if isinstance(run, Run) else load_run(run)
    folder = Path(folder)
    if not run.finished:
        raise TrainingError(f"The run in {run.path} is not finished; start its training again and it goes on.")
    _check_folder(folder, run.path)
    model, config = run.model(), run.config
    about = {
        "scale": config.scale,
        "corpus": config.corpus_fingerprint.get("display_name", config.corpus),
        "seed": config.seed,
        "run": config.to_dict(),
        "kit": __version__,
    }
    for optional in (RELEASED_NAME, "results.csv"):
        (folder / optional).unlink(missing_ok=True)  # of an earlier export
    save_model(model, folder, about)
    if released_keys:
        save_released(model, folder / RELEASED_NAME)
    source = RunFolder(run.path)
    for file in (source.config_path, source.metrics_path):  # with them the folder is a run too: load_run(folder)
        shutil.copyfile(file, folder / file.name)
    sessions = (source.read_config() or {}).get("sessions", [])
    results = read_results(run)
    if results is not None:
        write_text(folder / "results.csv", results.to_csv(index=False))
    write_text(folder / "README.md", model_card(run, results, sessions))
    return folder


def read_results(run: Run) -> pd.DataFrame | None:
    """The tidy rows that `diffclip evaluate` wrote for this run, None if it has not been evaluated."""
    file = paths.data_root() / "runs" / run.config.scale / "results" / f"{run.path.name}.csv"
    if not file.is_file():
        return None
    rows = pd.read_csv(file)
    return rows if len(rows) else None


def model_card(run: Run, results: pd.DataFrame | None, sessions: list[dict]) -> str:
    """README.md of the export: what the model is, what it learnt from and how, what it scores, how to use it."""
    config, last = run.config, run.metrics.iloc[-1]
    corpus, recipe = config.corpus_fingerprint, config.recipe
    generated = isinstance(corpus.get("source"), dict) and corpus["source"].get("kind") == "world"
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in corpus.get("skipped", {}).items()) or "none"
    lambdas = {name.removeprefix("lambda."): value for name, value in last.items() if name.startswith("lambda.")}
    trained = [
        ("steps", f"{last['step']:.0f} of {recipe.batch_size:,} pairs"),
        ("loss", f"{last['loss']:.4f} nats, the last step's batch"),
        ("accuracy in batch", f"{100 * last['accuracy']:.1f} %"),
        ("logit scale", f"{last['logit_scale']:.2f}"),
        *((f"lambda, {name.replace('.', ' layer ')}", f"{value:.4f}") for name, value in lambdas.items()),
    ]
    settings = [(name.replace("_", " "), value) for name, value in asdict(recipe).items() if value is not None]
    machines = [
        f"from step {s.get('from_step')}: {s.get('processes')} process(es) on {s.get('device')}, precision "
        f"{s.get('precision')}, Python {s.get('python')}, torch {s.get('torch')}, timm {s.get('timm')}"
        for s in sessions
    ]
    scores = _no_results(run) if results is None else _scores(results)
    note = (
        "The pictures are generated scenes, not photographs: the model knows nothing of the world outside them."
        if generated
        else "Pictures and alt texts come from the web, with its biases; they were not filtered further."
    )
    return f"""---
library_name: diffclip
license: mit
pipeline_tag: zero-shot-image-classification
tags: [clip, differential-attention, {config.variant}]
---

# {config.variant}, trained on {corpus.get("display_name", config.corpus)}

A contrastive image-text model of the variant `{config.variant}` and the size `{config.model.name}`, trained by the DiffCLIP
reproduction kit {__version__} at scale `{config.scale}` with seed {config.seed}. The method is that of "DiffCLIP:
Differential Attention Meets CLIP" (arXiv:2503.06626); these are not the authors' weights.

## Use

```python
import diffclip

model = diffclip.create_model(checkpoint="this folder").eval()
tokens = diffclip.tokenize(["a red circle"], context_length=model.config.text.context_length)
embedding = model.encode_text(tokens)  # not normalised
```

On the command line: `diffclip classify IMAGE --labels dog cat --checkpoint "this folder"`. Images: bicubic resize of the shorter edge to
{config.model.vision.image_size}, centre crop, ImageNet mean and standard deviation (`diffclip.images.eval_view`).

## Corpus

{corpus.get("display_name", config.corpus)}: {corpus.get("pairs", 0):,} pairs at {corpus.get("image_size")} px, content hash `{corpus.get("hash")}`; skipped when
it was prepared: {skipped}. {note}

## Scores

{scores}

## Training

{_table(("at the end", "value"), trained)}

{_table(("setting", "value"), settings)}

Computed {"; ".join(machines) or "on a machine that was not recorded"}.

## Limits

For research. A model of this kind repeats the biases of its captions and is not fit for decisions about people.
"""


def push(folder: str | Path, repo_id: str, *, private: bool = False, message: str | None = None) -> str:
    """Upload an exported folder to the hub (HF_ENDPOINT), making the repository if need be; returns the commit's address.

    Needs a token with the right to write (`hf auth login`, or HF_TOKEN). Raises ValueError for a wrong id or folder and
    HubError if the hub cannot be reached or refuses.
    """
    folder = Path(folder)
    if not is_repo_id(repo_id):
        raise ValueError(f"A repository on the hub is called owner/name; got {repo_id!r}.")
    load_model(folder)  # whatever is damaged is not published
    if is_offline():
        raise HubError(
            f"HF_HUB_OFFLINE is set: {folder} was written, but not pushed to {repo_id}. Unset it and push again."
        )
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message or f"Export of the DiffCLIP kit {__version__}"
        )
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.LocalTokenNotFoundError, OSError) as error:
        raise HubError(
            f"{folder} is written, but could not be pushed to {repo_id}: {str(error).strip().splitlines()[0]} Log in with "
            "`hf auth login` (or set HF_TOKEN) to an account that may write there, and push again."
        ) from error
    return done.commit_url


def _check_folder(folder: Path, run: Path) -> None:
    if folder.resolve() == run.resolve():
        raise ValueError(f"{folder} is the run itself: export it into another folder.")
    if folder.is_file():
        raise ValueError(f"{folder} is a file; an export is a folder.")
    ours = {WEIGHTS_NAME, RELEASED_NAME, "config.json", "README.md", "metrics.csv", "results.csv"}
    strangers = sorted(p.name for p in folder.glob("*") if p.name not in ours) if folder.is_dir() else []
    if strangers:
        raise ValueError(
            f"{folder} holds other files ({', '.join(strangers[:3])}), and all of an export's folder is published. Give a new "
            "or empty one."
        )


def _no_results(run: Run) -> str:
    return (
        f"Not evaluated when it was exported. `diffclip evaluate --scale {run.config.scale} --checkpoint RUN` does it, and "
        "exporting again adds the scores."
    )


def _scores(results: pd.DataFrame) -> str:
    rows = [
        (r.task, r.dataset, r.metric, f"{r.value:.1f} ± {r.stderr:.1f}", f"{r.chance:.1f}", r.n)
        for r in results.itertuples()
    ]
    generated = results["dataset"] != results["paper_name"]
    note = "Sets named `world-...` and `captions-...` are generated; none of them is a public benchmark.\n\n" * bool(
        generated.any()
    )
    return f"{note}{_table(('task', 'set', 'metric', 'score ± standard error', 'chance', 'questions'), rows)}"


def _table(head: tuple, rows: list[tuple]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
