"""DiffCLIP, reproduced: model, trainer, data and evaluation (arXiv 2503.06626)."""

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "diffclip.model",
    "contrastive_loss": "diffclip.model",
    "VARIANTS": "diffclip.model",
    "SIZES": "diffclip.model",
    "ModelConfig": "diffclip.model",
    "VisionConfig": "diffclip.towers",
    "TextConfig": "diffclip.towers",
    "load_released": "diffclip.released",
    "save_released": "diffclip.released",
    "DiffCLIP_VITB16": "diffclip.released",
    "CLIP_VITB16": "diffclip.released",
    "tokenize": "diffclip.tokenizer",
}
__all__ = [
    "CLIP_VITB16",
    "SIZES",
    "VARIANTS",
    "DiffCLIP_VITB16",
    "ModelConfig",
    "TextConfig",
    "VisionConfig",
    "__version__",
    "contrastive_loss",
    "create_model",
    "load_released",
    "save_released",
    "tokenize",
]


def __getattr__(name: str):
    """Import on first use: `import diffclip` stays quick for the command line."""
    if name in _PUBLIC:
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
        return value
    raise AttributeError(f"module 'diffclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
