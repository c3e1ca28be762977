import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3d.classes import (
    CLASS_LISTS,
    KINETICS_400,
    KINETICS_600,
    MAX_LINE_CHARS,
    ClassList,
    class_list,
    detect,
    known_name,
    normalize,
    read_lines,
)
from i3d.errors import DatasetError

REFERENCE = Path(__file__).parents[2] / "shared/reference/kinetics_classes.json"
K400, K600 = CLASS_LISTS["kinetics400"], CLASS_LISTS["kinetics600"]


# The lists themselves


def test_sizes_order_and_overlap():
    assert len(KINETICS_400) == len(set(KINETICS_400)) == 400
    assert len(KINETICS_600) == len(set(KINETICS_600)) == 600
    assert list(KINETICS_400) == sorted(KINETICS_400)
    assert list(KINETICS_600) == sorted(KINETICS_600)
    assert len(set(KINETICS_400) & set(KINETICS_600)) == 368


def test_known_positions():
    # The label maps of deepmind/kinetics-i3d, counted from 0.
    assert KINETICS_400[0] == KINETICS_600[0] == "abseiling"
    assert KINETICS_400[227] == "playing cricket"
    assert KINETICS_400[399] == KINETICS_600[599] == "zumba"


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"{REFERENCE.name} is not beside the repository")
def test_same_as_the_reference():
    reference = json.loads(REFERENCE.read_text("utf-8"))
    assert list(KINETICS_400) == reference["kinetics400"]
    assert list(KINETICS_600) == reference["kinetics600"]


def test_import_needs_no_heavy_library():
    heavy = {"torch", "numpy", "fsspec", "cv2"}
    code = f"import sys, i3d.data.kinetics; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Names as the copies of Kinetics write them


def torchvision_folder(name):
    return name.replace(" ", "_").replace("'", "").replace("(", "").replace(")", "")


def nonlocal_folder(name):
    return re.sub(r"[()']", "-", name).replace(" ", "_")


@pytest.mark.parametrize("classes", [K400, K600], ids=["400", "600"])
@pytest.mark.parametrize(
    "spelling",
    [
        str,
        str.lower,
        str.upper,
        lambda name: name.replace(" ", "_"),
        lambda name: name.replace(" ", "-"),
        lambda name: f'"{name}"',
        lambda name: f"  {name} ",
        torchvision_folder,
        nonlocal_folder,
        lambda name: name.replace("'", "\u2019"),  # a typographic apostrophe
    ],
)
def test_every_spelling_of_every_class_is_found(classes, spelling):
    assert [classes.index(spelling(name)) for name in classes.names] == list(range(len(classes)))


@given(st.sampled_from(KINETICS_600), st.text(" _-'\"()/.,&", max_size=5), st.randoms())
def test_separators_and_case_do_not_matter(name, separators, random):
    mangled = "".join(
        (c.upper() if random.random() < 0.5 else c) + separators for c in name if c.isalnum()
    )
    assert K600.names[K600.index(mangled)] == name


@given(st.text())
def test_normalize_is_stable(name):
    once = normalize(name)
    assert once == normalize(name + "_ ")
    assert not re.search(r"[\s_'\"()/-]", once)


def test_normalize_keeps_accents_in_either_composition():
    assert normalize("Café") == normalize("cafe\u0301") != normalize("cafe")


# index


def test_unknown_name_lists_the_nearest():
    with pytest.raises(DatasetError, match=r"'playing guitr'.*400 classes.*'playing guitar'"):
        K400.index("playing guitr")
    with pytest.raises(DatasetError, match="no name resembles it"):
        K400.index("qqqq")


def test_exact_names_win_and_ambiguous_ones_are_refused():
    classes = ClassList("languages", ("c", "c++", "c#", "++", "--"))
    assert [classes.index(name) for name in classes.names] == [0, 1, 2, 3, 4]
    with pytest.raises(DatasetError, match=r"'C' is ambiguous in languages: 'c', 'c\+\+', 'c#'"):
        classes.index("C")
    with pytest.raises(DatasetError, match="not one of the 5 classes"):
        classes.index("**")


@pytest.mark.parametrize("names", [(), ("a", " "), ("a", "b", "a")])
def test_class_list_refuses(names):
    with pytest.raises(DatasetError, match="class list 'x'"):
        ClassList("x", names)


def test_class_list_is_a_value():
    assert ClassList("x", ("a", "b")) == ClassList("x", ("a", "b"))
    assert hash(ClassList("x", ("a",))) == hash(ClassList("x", ("a",)))


# detect


def test_detect_needs_names_of_one_list_only():
    assert detect(KINETICS_400) is K400
    assert detect(map(torchvision_folder, KINETICS_600)) is K600
    assert detect(["digging", "abseiling"]) is K400
    assert detect(["luge"]) is K600


def test_detect_refuses_names_of_both_lists():
    both = set(KINETICS_400) & set(KINETICS_600)
    with pytest.raises(DatasetError, match=r"all 368 .* pass --classes kinetics400 or --classes"):
        detect(both)
    # Differs by case alone between the lists, and folders do not keep case reliably.
    with pytest.raises(DatasetError, match="ambiguous"):
        detect(["passing American football (not in game)"])


def test_detect_refuses_unknown_and_mixed_names():
    with pytest.raises(DatasetError, match=r"'archry' \(and 1 more\) is no class.*'archery'"):
        detect(["abseiling", "zzz", "archry"])
    with pytest.raises(DatasetError, match="'luge' is not in Kinetics-400, 'digging' is not in"):
        detect(["digging", "luge", "abseiling"])
    with pytest.raises(DatasetError, match="no class names"):
        detect([])


def test_known_name():
    assert known_name(KINETICS_400) == "kinetics400"
    assert known_name(tuple(map(nonlocal_folder, KINETICS_600))) == "kinetics600"
    assert known_name(KINETICS_400[:-1]) is None
    assert known_name(KINETICS_400[::-1]) is None


# Files of names


@pytest.fixture
def names_file(tmp_path):
    def write(text, name="actions.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "run\njump high\nfall\n",
        "\ufeffrun\r\njump high\r\nfall",
        "# three\n\nrun\n  jump high \nfall\n\n",
        '"run"\n"jump high"\n"fall"\n',
        "0 run\n1 jump high\n2 fall\n",
        "2 fall\n0 run\n1 jump high\n",
        "1 run\n2 jump high\n3 fall\n",
        'id,name\n0,run\n1,"jump high"\n2,fall\n',
        "run,0\njump high,1\nfall,2\n",
        "label,index\nrun,0\njump high,1\nfall,2\n",
        "run\t0\njump high\t1\nfall\t2\n",
        "fall 2\nrun 0\njump high 1\n",
    ],
)
def test_forms_of_a_class_file(names_file, text):
    assert class_list(names_file(text)) == ClassList("actions", ("run", "jump high", "fall"))


def test_quotes_keep_numbers(names_file):
    assert class_list(names_file('"100 m run"\n"200 m run"\n')).names == ("100 m run", "200 m run")
    assert class_list(names_file("100 m run\nlong jump\n")).names == ("100 m run", "long jump")
    assert class_list(names_file('a "quoted" word\n"say ""hi"""\n')).names[1] == 'say "hi"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class names"),
        ("\n# only a comment\n", "no class names"),
        ("run\nfall\nrun\n", r"actions.txt, line 3: 'run' is also on line 1"),
        ("run\n\n  \nrun", "line 4: 'run'"),
        ('run\n""\n', "line 2: an empty class name"),
        ("0 run\n2 fall\n", "line 2: .* with 2 they do not count"),
        ("5 run\n6 fall\n", "line 1: .* with 5 they do not count"),
        ("0 run\n0 fall\n", "with 0 they do not count"),
        ('{"run": 0}', "JSON"),
        (b"run\nf\xe4ll\n", "line 2: byte 0xe4 is not UTF-8"),
        (b"run\njump\0\n", "line 2: a NUL byte"),
        ("run\n".encode("utf-16"), "NUL byte"),
        ("run\n" + "x" * (MAX_LINE_CHARS + 1), "line 2 has 8,193 characters"),
    ],
)
def test_bad_class_file_names_file_and_line(names_file, text, message):
    with pytest.raises(DatasetError, match=message) as error:
        class_list(names_file(text))
    assert "actions.txt" in str(error.value)


def test_class_list_by_name_and_value():
    assert class_list("kinetics400") is K400
    assert class_list(K600) is K600
    with pytest.raises(DatasetError, match="'kinetics700' is neither"):
        class_list("kinetics700")


def test_a_file_with_the_names_of_kinetics_is_kinetics(names_file):
    text = "".join(f"{i},{torchvision_folder(name)}\n" for i, name in enumerate(KINETICS_400))
    assert class_list(names_file("id,name\n" + text)) is K400


def test_a_file_cannot_pass_for_kinetics(names_file):
    assert class_list(names_file("run\n", "kinetics400.txt")).name == "file kinetics400"


def test_class_file_from_a_url():
    import fsspec

    with fsspec.open("memory://lists/actions.txt", "wb") as f:
        f.write(b"run\nfall\n")
    assert class_list("memory://lists/actions.txt") == ClassList("actions", ("run", "fall"))
    with pytest.raises(DatasetError, match=r"cannot read memory://lists/none\.txt"):
        class_list("memory://lists/none.txt")


def test_read_lines_of_a_folder(tmp_path):
    with pytest.raises(DatasetError, match="cannot read"):
        read_lines(tmp_path)
