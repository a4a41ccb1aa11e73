"""Downloads from a server of this machine: what is missing is fetched once, and failures say what to do."""

import contextlib
import functools
import hashlib
import http.server
import shutil
import tarfile
import threading

import pytest
import torchvision

from lgfast.data import load_dataset
from tests.data.layouts import write_cifar100, write_flowers

pytestmark = pytest.mark.filterwarnings("ignore:.*md5 is not the published one")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Counts what it is asked for."""

    def log_message(self, *_):
        if self.command == "GET":
            self.server.asked.append(self.path.strip("/"))

    def copyfile(self, source, outputfile):
        with contextlib.suppress(BrokenPipeError):  # torchvision asks first where an address leads
            super().copyfile(source, outputfile)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder, its address, and the names that were asked for; the published addresses and sums are those of it."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "site"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    write_cifar100(tmp_path / "published")
    pack(tmp_path / "published", ["cifar-100-python"], folder / "cifar-100-python.tar.gz")
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", address + "cifar-100-python.tar.gz")
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "tgz_md5", md5(folder / "cifar-100-python.tar.gz"))
    write_flowers(tmp_path / "published")
    pack(tmp_path / "published" / "flowers-102", ["jpg"], folder / "102flowers.tgz")
    files = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    for name in ("imagelabels.mat", "setid.mat"):
        shutil.copy(tmp_path / "published" / "flowers-102" / name, folder)
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_download_url_prefix", address)
    sums = {key: (name, md5(folder / name)) for key, name in files.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", sums)
    yield folder, address, server.asked
    server.shutdown()
    server.server_close()


def pack(folder, names, path):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.add(folder / name, name)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("removed", [(), ("train",), ("test", "meta"), ("meta",)])
def test_what_is_missing_of_cifar_is_fetched(tmp_path, site, removed):
    root = tmp_path / "data"
    if removed:
        shutil.copytree(tmp_path / "published" / "cifar-100-python", root / "cifar-100-python")
        for name in removed:
            (root / "cifar-100-python" / name).unlink()
    assert len(load_dataset("cifar100", root, download=True)) == 20
    assert len(load_dataset("cifar100", root, "test", download=True)) == 10
    assert set(site[2]) == {"cifar-100-python.tar.gz"}
    site[2].clear()
    load_dataset("cifar100", root, download=True)
    assert site[2] == []


@pytest.mark.parametrize("removed", [None, "setid.mat", "imagelabels.mat", "jpg/image_00003.jpg", "jpg"])
def test_what_is_missing_of_flowers_is_fetched(tmp_path, site, removed):
    root = tmp_path / "data"
    if removed is not None:
        shutil.copytree(tmp_path / "published" / "flowers-102", root / "flowers-102")
        path = root / "flowers-102" / removed
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(load_dataset("flowers102", root, download=True)) == 10
    assert len(load_dataset("flowers102", root, "test", download=True)) == 5
    is_image = removed is None or removed.startswith("jpg")
    assert ("102flowers.tgz" in site[2]) == is_image


@pytest.mark.parametrize(
    ("name", "file", "by_hand"),
    [
        ("cifar100", "cifar-100-python.tar.gz", r"unpack cifar-100-python\.tar\.gz from https://www\.cs\.toronto"),
        ("flowers102", "imagelabels.mat", r"put 102flowers\.tgz .* from https://www\.robots\.ox"),
        ("flowers102", "102flowers.tgz", r"put 102flowers\.tgz .* from https://www\.robots\.ox"),
    ],
)
@pytest.mark.parametrize("fault", ["gone", "page"])
def test_a_failure_names_dataset_address_and_a_way_by_hand(tmp_path, site, name, file, by_hand, fault):
    folder, address, _ = site
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    if fault == "page":  # which a proxy or a mirror gives in place of a file
        (folder / file).write_text("<html>Please log in</html>")
    reason = "HTTP Error 404: File not found" if fault == "gone" else "what came is not the published file"
    with pytest.raises(OSError, match=rf"^{name}: cannot download {address}{file} \({reason}.* or {by_hand}") as caught:
        load_dataset(name, tmp_path / "data", download=True)
    assert "\n" not in str(caught.value)
    (folder / file).write_bytes(whole)
    assert len(load_dataset(name, tmp_path / "data", download=True)) > 0


def test_no_network_is_one_line(tmp_path, site, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(OSError, match=r"^cifar100: cannot download http://127.0.0.1:9/.*refused.*check the net"):
        load_dataset("cifar100", tmp_path / "data", download=True)
