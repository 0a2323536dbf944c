"""Names of modules: what they stand for, which of them exist, and how a change of weights shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cache.errors import UserError
from extract import backbones
from tests import modules
from tests.extract.backbones.helpers import INCEPTION
from tests.processes import REPO


def test_unknown_names_are_errors_with_a_suggestion(tmp_path: Path) -> None:
    for check in (backbones.identity, backbones.short_name, backbones.load):
        with pytest.raises(UserError, match=r"did you mean inception_v3"):
            check("inception_v2")
        with pytest.raises(UserError, match=r"did you mean .*keras:ResNet50"):
            check("resnet50")
        with pytest.raises(UserError, match=r"did you mean .*keras:MobileNetV2"):
            check("keras:mobilenetv4")
        with pytest.raises(UserError, match=r"nowhere does not exist"):
            check(str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match=r"is no SavedModel"):
            check(str(tmp_path))
        with pytest.raises(UserError, match=r"is a file"):
            check(__file__)


CHECK_NAMES = """
import sys
from cache.errors import UserError
from extract import backbones
try:
    backbones.load("inception_v2")
except UserError as error:
    print(error)
for module in ("efficientnet_lite0", "inception_v3", "keras:resnet50"):
    print(backbones.identity(module), backbones.short_name(module))
print(sorted({"tensorflow", "keras", "tensorflow_hub"} & set(sys.modules)))
"""


def test_names_are_checked_without_importing_tensorflow() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK_NAMES], cwd=REPO, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("unknown module 'inception_v2'")
    assert len(lines) == 5
    assert lines[-1] == "[]"


def test_identity_of_a_folder_depends_on_its_files_and_not_on_its_place(tmp_path: Path) -> None:
    module = modules.make_tf1_hub_module(tmp_path / "module")
    before = backbones.identity(module)
    moved = shutil.move(module, tmp_path / "elsewhere")
    assert backbones.identity(str(moved)) == before == backbones.load(str(moved)).weights_digest
    (Path(moved) / "README.md").write_text("a note")
    assert backbones.identity(str(moved)) == before

    for file in ("saved_model.pb", "tfhub_module.pb", "variables/variables.index"):
        changed = tmp_path / f"changed {file.replace('/', ' ')}"
        shutil.copytree(moved, changed)
        contents = bytearray((changed / file).read_bytes())
        contents[-1] ^= 1
        (changed / file).write_bytes(contents)
        assert backbones.identity(str(changed)) != before


def test_identity_of_other_modules() -> None:
    assert backbones.identity("inception_v3") == backbones.identity(INCEPTION) == INCEPTION
    assert backbones.identity("keras:resnet50") == backbones.identity("keras:ResNet50")
    assert re.fullmatch(r"keras:ResNet50 \d+\.\d+.*", backbones.identity("keras:ResNet50"))
    # These digits are part of the file's name, so they come from its publisher.
    assert backbones.identity("efficientnet_lite0").startswith("57934424")


def test_short_names(tmp_path: Path) -> None:
    modules.make_serving_module(tmp_path / "my net,\u00e9t\u00e9")
    assert backbones.short_name("efficientnet_lite0") == "efficientnet_lite0"
    assert backbones.short_name("inception_v3") == backbones.short_name(INCEPTION) == "inception_v3"
    assert backbones.short_name("keras:resnet50") == "keras-ResNet50"
    assert backbones.short_name(f"{tmp_path}/my net,\u00e9t\u00e9/") == "my-net-t"
    url = "https://example.org/google/resnet_50/feature_vector/1?format=compressed"
    assert backbones.short_name(url) == "google-resnet_50-feature_vector-1"
    assert len(backbones.short_name("https://example.org/" + "long/" * 100)) <= 64
    # Wherever a long one is cut off, it begins as no hidden folder and no flag does.
    for length in range(60, 70):
        for mark in "./-":
            assert re.match(r"[\w]", backbones.short_name(f"https://example.org/long{mark}{'x' * length}"))
