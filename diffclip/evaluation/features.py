"""Frozen features: extracted once per (model, set), kept on disk, verified when read.

A subject is whatever can be evaluated: one of our runs, a saved or released checkpoint, an open_clip model. Protocols
see none of that; they get tensors from here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from diffclip import images, training
from diffclip.classify import open_checkpoint
from diffclip.files import write_tensors
from diffclip.model import CLIP, WEIGHTS_NAME
from diffclip.tokenizer import tokenize

from .checks import EvaluationError, check_features

log = logging.getLogger("diffclip")

BATCH = 256
PART = 32 * BATCH  # a long extraction is kept in parts of so many images, so that a stop costs no more than one
OPEN_CLIP = "open_clip:"  # "open_clip:ViT-B-32/laion2b_s34b_b79k"
_FORMAT = "1"  # of preprocessing and files; a change makes all features anew


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    name: of its files of features and results. model: label of the variant. pretraining: what it was trained on, as
    tables print it. seed: of its training. encoder: has encode_image and encode_text. view: PIL image -> float tensor
    [3, H, W]. tokens: list of strings -> int64 [n, length]. key: a hash of weights and preprocessing.
    """

    name: str
    model: str
    pretraining: str
    seed: int
    encoder: nn.Module
    view: Callable[[Image.Image], Tensor]
    tokens: Callable[[list[str]], Tensor]
    key: str


def subject(
    source: str | Path | training.Run | CLIP, *, name: str | None = None, pretraining: str | None = None
) -> Subject:
    """Whatever can be evaluated, ready for it.

    source: a run or its folder, a model.safetensors of ours, a released checkpoint (path, registry name or hub id),
    an open_clip model as "open_clip:<architecture>/<pretrained tag>", or a CLIP of ours in memory. name, pretraining:
    override what the source says of itself. Raises FileNotFoundError or ValueError with what is wrong.
    """
    if isinstance(source, training.Run):
        return _from_run(source, name, pretraining)
    if isinstance(source, CLIP):
        return _from_model(source, name or source.variant, pretraining or "unknown", 0)
    text, path = str(source), Path(source)
    if text.startswith(OPEN_CLIP):
        return _from_open_clip(text.removeprefix(OPEN_CLIP), name, pretraining)
    if (path / "metrics.csv").is_file():  # a run's folder, or what was exported from it
        return _from_run(training.load_run(path), name, pretraining)
    found = open_checkpoint(source)
    trained_on = next((corpus for corpus in ("CC12M", "CC3M") if corpus.lower() in text.lower()), "unknown")
    own = (
        path.stem
        if path.is_file() and path.name != WEIGHTS_NAME
        else path.absolute().parent.name
        if path.is_file()
        else path.name
    )
    return _from_model(found, name or own, pretraining or trained_on, 0)


def _from_run(run: training.Run, name: str | None, pretraining: str | None) -> Subject:
    from diffclip.scales import get_scale

    config = run.config
    trained_on = pretraining or get_scale(config.scale).corpus(config.corpus).display_name
    return _from_model(run.model(), name or run.path.name, trained_on, config.seed)


def _from_model(model: CLIP, name: str, pretraining: str, seed: int) -> Subject:
    size, length = model.config.vision.image_size, model.config.text.context_length
    return Subject(
        name=name,
        model=model.variant,
        pretraining=pretraining,
        seed=seed,
        encoder=model.eval(),
        view=lambda image: images.eval_view(image, size),
        tokens=lambda texts: tokenize(texts, context_length=length),
        key=weights_hash(model, f"ours {size} {length}"),
    )


def _from_open_clip(spec: str, name: str | None, pretraining: str | None) -> Subject:
    import open_clip

    architecture, _, tag = spec.partition("/")
    if architecture not in open_clip.list_models():
        raise ValueError(
            f"open_clip knows no architecture {architecture!r}. Write open_clip:<architecture>/<pretrained tag>; "
            "open_clip.list_pretrained() lists them."
        )
    try:
        model, _, view = open_clip.create_model_and_transforms(architecture, pretrained=tag or None)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"open_clip could not load {spec}: {str(error).splitlines()[0]}") from error
    tokenizer = open_clip.get_tokenizer(architecture)
    return Subject(
        name=name or f"open_clip-{architecture}-{tag or 'fresh'}".replace("/", "-"),
        model=architecture,
        pretraining=pretraining or tag or "none",
        seed=0,
        encoder=model.eval(),
        view=view,
        tokens=lambda texts: tokenizer(texts),
        key=weights_hash(model, f"open_clip {architecture} {view}"),
    )


def weights_hash(model: nn.Module, salt: str = "") -> str:
    """A sha256 over names and values of a model's weights, and over `salt`."""
    digest = hashlib.sha256(f"{_FORMAT} {salt}".encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Features:
    """The features of one subject, kept under `root`, one safetensors file a (set, split, kind)."""

    def __init__(
        self, of: Subject, root: str | Path, *, progress: bool = True, device: str | torch.device | None = None
    ) -> None:
        self.subject = of
        self.root = Path(root) / of.name
        self.progress = progress
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._on_device = False

    def images(self, benchmark) -> Tensor:
        """Embeddings [N, D] of a benchmark's images, not normalised."""
        n = len(benchmark.images)
        if n <= PART:
            return self._cached(benchmark, "image", lambda: self._encode_images(benchmark.images, benchmark.name))

        def in_parts() -> Tensor:
            return torch.cat([self._cached(benchmark, *part(start)) for start in range(0, n, PART)])

        def part(start: int) -> tuple[str, Callable[[], Tensor]]:
            what = f"{benchmark.name} from {start:,} of {n:,}"
            return f"image-{start}", lambda: self._encode_images(benchmark.images[start : start + PART], what)

        features = self._cached(benchmark, "image", in_parts)
        for start in range(0, n, PART):
            self._path(benchmark, part(start)[0])[0].unlink(missing_ok=True)
        return features

    def texts(self, benchmark, kind: str, texts: Sequence[str]) -> Tensor:
        """Embeddings [len(texts), D], not normalised; `kind` names them within the benchmark."""
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
        return self._cached(benchmark, f"{kind}-{digest}", lambda: self._encode_texts(texts))

    def classes(self, benchmark) -> Tensor:
        """Unit class embeddings [C, D]: the normalised mean of the normalised embeddings of all prompts (FACTS)."""
        from .zero_shot import class_embeddings

        prompts = [t.replace("{c}", c) for c in benchmark.classnames for t in benchmark.templates]
        return class_embeddings(self.texts(benchmark, "classes", prompts).unflatten(0, (len(benchmark.classnames), -1)))

    def _path(self, benchmark, kind: str) -> tuple[Path, str]:
        """Where features are kept, and the key that says what they were made of."""
        identity = json.dumps([self.subject.key, benchmark.fingerprint, kind], sort_keys=True, default=str)
        key = hashlib.sha256(identity.encode()).hexdigest()
        return self.root / f"{benchmark.name}-{benchmark.split}-{kind}-{key[:12]}.safetensors", key

    def _cached(self, benchmark, kind: str, make: Callable[[], Tensor]) -> Tensor:
        path, key = self._path(benchmark, kind)
        if path.is_file():
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                features = safetensors.torch.load_file(path)["features"]
                if metadata.get("key") == key and metadata.get("sha256") == _hash(features):
                    return features
                log.warning("The features in %s do not match their hash; they are made again.", path)
            except (safetensors.SafetensorError, OSError, KeyError) as error:
                log.warning("The features in %s cannot be read (%s); they are made again.", path, error)
        features = check_features(make().float(), f"The features of {self.subject.name} on {benchmark.name}")
        write_tensors(path, {"features": features}, {"key": key, "sha256": _hash(features)})
        return features

    def _encoder(self) -> nn.Module:
        if not self._on_device:
            self.subject.encoder.to(self.device)
            self._on_device = True
        return self.subject.encoder

    @torch.inference_mode()
    def _encode_images(self, pictures: Sequence[Image.Image], name: str) -> Tensor:
        encoder, out = self._encoder(), []
        starts = range(0, len(pictures), BATCH)
        for start in self._bar(starts, f"{self.subject.name}: {name}"):
            batch = torch.stack([self.subject.view(image) for image in pictures[start : start + BATCH]])
            out.append(encoder.encode_image(batch.to(self.device)).float().cpu())
            self._refuse_nonfinite(out[-1], f"images {start} to {start + len(batch) - 1} of {name}")
        return torch.cat(out)

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        encoder, out = self._encoder(), []
        for start in range(0, len(texts), BATCH):
            tokens = self.subject.tokens(list(texts[start : start + BATCH]))
            out.append(encoder.encode_text(tokens.to(self.device)).float().cpu())
            self._refuse_nonfinite(out[-1], f"the texts from {texts[start]!r} on")
        return torch.cat(out)

    def _refuse_nonfinite(self, features: Tensor, what: str) -> None:
        """At the first batch, not when all is done."""
        if not features.isfinite().all():
            raise EvaluationError(
                f"{self.subject.name} embeds {what} as NaN or infinity. Its training has diverged, or its weights are "
                "damaged: look at metrics.csv in the run's folder, or take an earlier checkpoint."
            )

    def _bar(self, starts: range, what: str) -> Iterable[int]:
        # Short work shows no bar: on a small set it would flicker by before it can be read.
        quiet = not self.progress or len(starts) < 8
        return tqdm(starts, desc=what, unit=f"x{BATCH}", leave=False, disable=True if quiet else None)


def _hash(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy().tobytes()).hexdigest()
