"""The names of other programs' parameters."""

from i3d.models.foreign.names import CHAINER, HASSONY2, PYTORCH_I3D, TENSORFLOW


def test_names_of_the_ports_are_those_they_document():
    name = "Mixed_3b.Branch_1.Conv3d_0b_3x3.bn.running_var"
    assert PYTORCH_I3D.key(name) == "Mixed_3b.b1b.bn.running_var"
    assert HASSONY2.key(name) == "mixed_3b.branch_1.1.batch3d.running_var"
    name = "Mixed_5b.Branch_2.Conv3d_0b_3x3.conv.weight"
    assert TENSORFLOW.key(name) == "Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w"
    assert CHAINER.key(name) == "mixed_5b/branch_2_conv3d_0b_3x3/conv3d/conv/W"
