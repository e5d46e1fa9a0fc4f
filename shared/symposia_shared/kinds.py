"""Which kinds of models cannot be loaded here, and which licences forbid commercial use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

#: what a checkpoint's weights are for; ``closed``: they are published nowhere
Kind = Literal["text", "image", "audio", "video", "closed"]

#: why each kind but text is refused, and what to do instead
WHY_NOT: dict[Kind, tuple[str, str]] = {
    "closed": ("its weights are not published, so there is nothing to load.",
               "Where you have its API, ask it as an endpoint: symposia worker --device openai:https://HOST/v1 --model OURS=THEIRS."),
    "image": ("it makes or reads images; the engines here generate text, embed it, or turn one text into another.", "Serve it elsewhere."),
    "audio": ("it makes or reads sound; the engines here generate text, embed it, or turn one text into another.", "Serve it elsewhere."),
    "video": ("it makes or reads video; the engines here generate text, embed it, or turn one text into another.", "Serve it elsewhere."),
}

_TASKS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("video", re.compile(r"video")),
    ("audio", re.compile(r"audio|speech|voice|sound|music")),
    ("image", re.compile(r"^text-to-(image|3d)$|^image-|^(unconditional-image|mask)-generation$|^(object|keypoint)-detection$|^depth-estimation$|"
                         r"^zero-shot-(image|object)|^visual-question|^document-question")),
)
#: a task that reads an image and answers in text may be served by a checkpoint whose text part loads: the trial decides
_MAYBE_TEXT = {"image-text-to-text", "image-to-text", "any-to-any"}
_TYPES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("video", re.compile(r"^(videomae|timesformer|vivit|video_llama.*|vjepa.*)$")),
    ("audio", re.compile(r"^(whisper|wav2vec2.*|hubert|wavlm|unispeech.*|speecht5|speech_to_text.*|bark|musicgen.*|encodec|dac|mimi|moshi|vits|clap|"
                         r"audio-spectrogram-transformer|seamless_m4t.*|fastspeech2.*|univnet|sew.*|mctct|data2vec-audio|csm|kyutai.*)$")),
    ("image", re.compile(r"^(vit.*|clip|clip_.*|siglip.*|sam.*|detr|.*_detr|dpt|dinov2.*|dinov3.*|swin.*|convnext.*|beit|deit|resnet|regnet|segformer|"
                         r"mobilenet.*|mobilevit.*|yolos|owlvit|owlv2|efficientnet|levit|cvt|poolformer|mask2former|maskformer|oneformer|depth_anything|zoedepth|glpn|"
                         r"upernet|bit|focalnet|hiera|ijepa|groupvit|data2vec-vision|imagegpt)$")),
)

_NON_COMMERCIAL = re.compile(r"(^|[-_ (])nc([-_ )]|$)|non[-_ ]?commercial|research[-_ ]only|research[-_ ]use|academic", re.IGNORECASE)


def kind_of_task(task: str) -> Kind:
    """The kind of a model whose card names ``task`` (the hub's ``pipeline_tag``)."""
    return "text" if task in _MAYBE_TEXT else next((kind for kind, names in _TASKS if names.search(task)), "text")


def kind_of_files(names: Iterable[str], model_type: str) -> Kind:
    """The kind of a model by the files of its folder and its configuration's ``model_type``."""
    if "model_index.json" in names:  # a pipeline of diffusion models
        return "image"
    return next((kind for kind, types in _TYPES if types.fullmatch(model_type)), "text")


def forbids_commerce(licence: str) -> bool:
    """Whether a licence's name says that it forbids commercial use. A name that says nothing of it is no permission: read it."""
    return _NON_COMMERCIAL.search(licence) is not None
