# SPDX-License-Identifier: Apache-2.0
"""Weights of a stage from a URL: a local server, and no server."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
import torchvision
from twostage_tiny import tiny_cfg

from twostage.reid import build_reid


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


def test_weights_from_a_url(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    source = torchvision.models.resnet18()
    (tmp_path / "www").mkdir()
    torch.save(source.state_dict(), tmp_path / "www" / "resnet18.pth")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "www"))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    cfg = tiny_cfg(REID="torchvision/resnet18", REID_WEIGHTS=f"{address}/resnet18.pth")
    try:
        assert torch.equal(build_reid(cfg).net.conv1.weight, source.conv1.weight)
        cfg.MODEL.TWO_STAGE.REID_WEIGHTS = f"{address}/other.pth"
        with pytest.raises(ValueError, match="REID_WEIGHTS.*other.pth' could not be downloaded"):
            build_reid(cfg)
    finally:
        server.shutdown()
        server.server_close()
    cfg.MODEL.TWO_STAGE.REID_WEIGHTS = f"{address}/third.pth"
    with pytest.raises(ValueError, match="could not be downloaded: .* Without a network"):
        build_reid(cfg)
