"""The five task graphs of the paper's experiments (Sec. 5.1, Fig. 3), in three stages: analyse, execute, aggregate.

The paper names their patterns (chain, branch and merge, fusion of two sources) and modalities; the subtasks are ours.
"""

from __future__ import annotations

import networkx as nx


def _graph(modalities: dict[str, str], *paths: str) -> nx.DiGraph:
    """A graph from subtask names with modalities, and paths written `a > b > c`."""
    graph = nx.DiGraph()
    for name, modality in modalities.items():
        graph.add_node(name, modality=modality)
    for path in paths:
        nx.add_path(graph, path.split(" > "))
    return graph


def text_analysis() -> nx.DiGraph:
    """A chain of five text subtasks."""
    names = ("analyse", "extract", "reason", "verify", "answer")
    return _graph(dict.fromkeys(names, "text"), " > ".join(names))


def image_analysis() -> nx.DiGraph:
    """Three views of one image, merged: six image subtasks."""
    names = ("analyse", "detect", "segment", "classify", "merge", "answer")
    return _graph(
        dict.fromkeys(names, "image"),
        "analyse > detect > merge > answer",
        "analyse > segment > merge",
        "analyse > classify > merge",
    )


def audio_analysis() -> nx.DiGraph:
    """A recording separated into speech and background, merged: seven audio subtasks."""
    names = ("analyse", "separate", "transcribe", "speaker", "background", "merge", "answer")
    return _graph(
        dict.fromkeys(names, "audio"),
        "analyse > separate > transcribe > merge > answer",
        "separate > speaker > merge",
        "analyse > background > merge",
    )


def visual_question_answering() -> nx.DiGraph:
    """An image and a question, fused: eight subtasks."""
    return _graph(
        {
            "analyse-image": "image",
            "analyse-question": "text",
            "detect": "image",
            "describe": "image",
            "parse": "text",
            "align": "text",
            "fuse": "multimodal",
            "answer": "multimodal",
        },
        "analyse-image > detect > fuse > answer",
        "analyse-image > describe > align > fuse",
        "analyse-question > parse > align",
    )


def audio_text_analysis() -> nx.DiGraph:
    """A recording and a document, fused: seven subtasks."""
    return _graph(
        {
            "analyse-audio": "audio",
            "analyse-text": "text",
            "transcribe": "audio",
            "emotion": "audio",
            "keywords": "text",
            "fuse": "multimodal",
            "answer": "text",
        },
        "analyse-audio > transcribe > fuse > answer",
        "analyse-audio > emotion > fuse",
        "analyse-text > keywords > fuse",
    )


TEMPLATES = {
    "text-analysis": text_analysis,
    "image-analysis": image_analysis,
    "audio-analysis": audio_analysis,
    "visual-question-answering": visual_question_answering,
    "audio-text-analysis": audio_text_analysis,
}
