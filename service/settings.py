"""Settings of the service, each also by an environment variable ``SUPERPOINT_NAME``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Container
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.invalid import told

# what the library, its client, compose.yaml and the tests read
_ELSEWHERE = {
    f"SUPERPOINT_{name}"
    for name in ("THREADS", "WEIGHTS_DIR", "API_KEY", "PUBLISH", "PUBLISH_PORT", "OPTIONS", "FUZZ_EXAMPLES")
}
# what Kubernetes sets for a Service called superpoint, and Docker for a link
_OF_A_SERVICE = re.compile(
    r"SUPERPOINT_(NAME|ENV_\w+|SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)

_SIZE = re.compile(r"(\d{1,9})\s*x\s*(\d{1,9})")
_LEAST_SIDE = 8  # of a warm-up image, pixels
# an Origin header: https://www.rfc-editor.org/rfc/rfc6454#section-6; file:// is what some web views send
_ORIGIN = re.compile(r"\*|null|file://|([a-z][a-z0-9+.-]*)://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_DEFAULT_PORTS = {("http", ":80"), ("https", ":443")}  # browsers leave them out

# a year, and a petabyte: far beyond use, and within what timers, pools and decoders can count
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Megabytes = Annotated[float, Field(gt=0, le=1e9)]
Megapixels = Annotated[float, Field(gt=0, le=1e9)]


class Settings(BaseSettings):
    """What ``superpoint serve`` runs with. Lists are given with commas."""

    model_config = SettingsConfigDict(env_prefix="SUPERPOINT_", env_ignore_empty=True, extra="forbid", frozen=True)

    model: str = Field(default="superpoint-edge", description="released model or weight file, the default of requests")
    models: Annotated[tuple[str, ...], NoDecode] = Field(default=(), description="further models for requests to name")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    runtime: str = Field(default="auto", description="on a CPU: auto, torch, onnxruntime, openvino or ncnn")
    precision: str = Field(default="auto", description="of the network: auto, float32, bf16, fp16 or int8")

    host: str = Field(default="127.0.0.1", description="address that superpoint serve listens at")
    port: int = Field(default=8000, ge=0, le=65535, description="port that superpoint serve listens at")

    max_batch: int = Field(default=16, ge=1, description="images of a batch")
    max_batch_mp: Megapixels = Field(default=16.0, description="megapixels of a batch of more than one image")
    max_delay_ms: float = Field(
        default=2.0,
        ge=0,
        le=60_000,
        description="how long a batch that is not full is waited for while more images are coming",
    )
    max_queue: int = Field(default=256, ge=2, description="images and searches that were let in and are not finished")
    deadline_s: Seconds = Field(default=30.0, description="longest time of a request, from its admission")
    decode_threads: int = Field(default=4, ge=1, description="threads that decode images, and as many that track")
    heartbeat_limit_s: Seconds = Field(default=30.0, description="longest silence of the device's thread")
    shutdown_s: Seconds = Field(default=30.0, description="time to finish what was accepted")

    max_requests: int = Field(default=1024, ge=1, description="requests that are served at a time")
    max_body_mb: Megabytes = Field(default=32.0, description="largest request body")
    max_bodies_mb: Megabytes = Field(default=1024.0, description="request bodies held at a time, all together")
    max_pixels_mp: Megapixels = Field(default=40.0, description="largest image, megapixels, as it is and as resized")
    max_decoded_mb: Megabytes = Field(
        default=2048.0, description="images that are decoded or wait for the device; others wait before that"
    )
    max_keypoints: int = Field(default=4096, ge=1, description="most keypoints that a request may ask for")
    warmup: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("640x480",),
        validate_default=False,  # it makes way for the limit of pixels, see warmup_sizes
        description="image sizes that are run before the service says that it is ready",
    )

    store_ttl_s: Seconds = Field(default=3600.0, description="seconds without use until stored features expire")
    store_max_mb: Megabytes = Field(default=512.0, description="memory of stored features")
    store_max_entries: int = Field(default=10_000, ge=1, description="images whose features are stored")

    sequence_ttl_s: Seconds = Field(default=300.0, description="seconds without a frame until a sequence expires")
    sequence_max: int = Field(default=256, ge=1, description="sequences that are open at a time")
    sequence_max_mb: Megabytes = Field(default=1024.0, description="memory that open sequences may come to")
    stream_waiting: int = Field(
        default=2, ge=1, description="frames of a stream that wait before the oldest is dropped"
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="keys of X-API-Key; without any, clients of this machine alone are served"
    )
    no_auth: bool = Field(default=False, description="serve everybody without a key")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins whose pages may ask, * for all; none by default"
    )
    metrics_open: bool = Field(default=False, description="serve /metrics without a key")

    @field_validator("models", "warmup", "api_keys", "cors_origins", mode="before")
    @classmethod
    def split(cls, value: object) -> object:
        """Take a list from text with commas."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("max_bodies_mb")
    @classmethod
    def hold_one_body(cls, value: float, info: ValidationInfo) -> float:
        """Refuse a limit that would have the largest body answered as overload, for which waiting is no help."""
        least = info.data.get("max_body_mb", 0.0)
        if value < least:
            raise _custom(
                f"{value:g} is less than one body may have; expected SUPERPOINT_MAX_BODY_MB, {least:g}, or more"
            )
        return value

    @field_validator("warmup")
    @classmethod
    def warm_what_is_allowed(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Refuse sizes that are none, or that no request may bring."""
        most = info.data.get("max_pixels_mp", math.inf)
        for text in value:
            try:
                width, height = parse_size(text)
            except ValueError as error:
                raise _custom(str(error)) from None
            if width * height > most * 1e6:
                limit = f"SUPERPOINT_MAX_PIXELS_MP, {most:g}"
                raise _custom(f"'{text}' has {width * height / 1e6:g} megapixels; expected at most {limit}")
        return value

    @field_validator("cors_origins")
    @classmethod
    def name_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what no browser sends: it is compared as text, and would never match."""
        for text in value:
            found = _ORIGIN.fullmatch(text)
            if found is None or (found[1], found[3]) in _DEFAULT_PORTS:
                expected = "scheme://host[:port] in lower case, without path and default port, or *"
                raise _custom(f"'{text}' is no origin as browsers send it; expected {expected}")
        return value

    @field_validator("port", mode="before")
    @classmethod
    def take_no_address(cls, value: object) -> object:
        """Leave ``tcp://ADDRESS:PORT`` aside: Kubernetes and Docker set that for a service called superpoint."""
        if isinstance(value, str) and value.startswith(("tcp://", "udp://", "sctp://")):
            return cls.model_fields["port"].default
        return value


def _custom(message: str) -> PydanticCustomError:
    """Of a setting; the message stands as it is, after the setting's name."""
    return PydanticCustomError("setting", "{message}", {"message": message})


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of ``WIDTHxHEIGHT``, pixels.

    Raises:
        ValueError: it is none, or a side is under 8 pixels.
    """
    found = _SIZE.fullmatch(text)
    if found is None or min(size := (int(found[1]), int(found[2]))) < _LEAST_SIDE:
        raise ValueError(f"'{text}' is no size; expected WIDTHxHEIGHT, {_LEAST_SIDE} pixels or more")
    return size


def warmup_sizes(settings: Settings) -> list[tuple[int, int]]:
    """(width, height) of the images that the service warms up with, pixels.

    What was asked for is within the limit of pixels; the default is made smaller where it is not, and left out where
    hardly an image is.
    """
    sizes = []
    for width, height in map(parse_size, settings.warmup):
        share = min(math.sqrt(settings.max_pixels_mp * 1e6 / (width * height)), 1.0)
        sizes.append((int(width * share), int(height * share)))
    return [size for size in sizes if min(size) >= _LEAST_SIDE]


def refusal(error: ValidationError, flags: Container[str] = ()) -> str:
    """What is wrong with the first setting that is, in one line.

    Args:
        error: of making :class:`Settings`.
        flags: settings that the command line gave, and not the environment.
    """
    first = error.errors()[0]
    name, *_ = map(str, first["loc"])
    where = f"--{name.replace('_', '-')}" if name in flags else f"{Settings.model_config['env_prefix']}{name.upper()}"
    return f"{where}: {first['msg']}" if name == "api_keys" else told(where, first)  # these are not shown


def unknown_variables() -> list[str]:
    """Variables of the environment that start as settings do, and are none: misspelt, as a rule.

    Those that a container gets of a service called superpoint are not among them.
    """
    prefix = Settings.model_config["env_prefix"]
    known = {prefix + name.upper() for name in Settings.model_fields} | _ELSEWHERE
    ours = (name for name in os.environ if name.startswith(prefix) and not _OF_A_SERVICE.fullmatch(name))
    return sorted(name for name in ours if name not in known)


def described() -> str:
    """A line for each setting: variable, meaning and default."""
    prefix = Settings.model_config["env_prefix"]
    lines = []
    for name, field in Settings.model_fields.items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        lines.append(f"  {prefix}{name.upper():<20} {field.description} (default: {default or 'none'})")
    return "\n".join(lines)
