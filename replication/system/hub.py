"""The Hugging Face hub, where it can be reached."""

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

TIMEOUT = 5.0  # seconds


def offline_if_unreachable() -> None:
    """Switch the hub's libraries to offline mode where it cannot be reached.

    They would retry for half a minute before saying so; what is cached still loads. To be called before `datasets`,
    `transformers` or `lm_eval` is imported.
    """
    if "HF_HUB_OFFLINE" in os.environ or getproxies():  # behind a proxy only its libraries know
        return
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((hub.hostname, hub.port or 443), TIMEOUT).close()
    except OSError:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
