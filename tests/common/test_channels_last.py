"""Networks whose gradients in channels-last write past their memory are told apart, and not trained so."""

import pytest
from torch import nn

from flatsparse.common.channels_last import unsafe_in_channels_last
from flatsparse.common.errors import InputError
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import RunConfig
from flatsparse.models import resnet20


@pytest.mark.parametrize(
    ("layer", "unsafe"),
    [
        (nn.Conv2d(5, 10, 1, stride=2), True),
        (nn.Conv2d(32, 32, 1, stride=2, groups=8), True),
        (nn.Conv2d(16, 32, 1, stride=2), False),
        (nn.Conv2d(5, 10, 1), False),
        (nn.Conv2d(5, 10, 3, stride=2), False),
    ],
)
def test_strided_1x1_convolutions_of_few_input_channels_are_found(layer, unsafe):
    assert unsafe_in_channels_last(nn.Sequential(nn.ReLU(), layer)) == ("1" if unsafe else None)


def test_published_networks_are_safe():
    assert unsafe_in_channels_last(resnet20()) is None


def test_a_run_in_channels_last_is_refused(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels=1):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 1, stride=2), nn.Flatten(), nn.Linear(8 * 16, num_classes))\n"
    )
    run = RunConfig.of(model=f"{tmp_path / 'net.py'}:net", epochs=1, train_size=64, channels_last=True)
    with pytest.raises(InputError, match="--channels-last is not for '0'"):
        loop.train(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
