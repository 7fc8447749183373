"""Tables as people and other programs write them."""

from pathlib import Path

import pytest

from pathovit.errors import SettingsError
from pathovit.files import slide_stem
from pathovit.manifest import existing_slide, read_manifest, rival_splits, rows_of_slides
from pathovit.model.targets import read_target
from pathovit.tables import number, part_named, spelling


def write(path: Path, text: str, coding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(coding))
    return path


@pytest.mark.parametrize("column", ["patient", "PATIENT", "patient_id", "Patient ID", "case_id", "Case", "subject-id"])
def test_a_column_of_patients_is_known_in_any_spelling_and_said(tmp_path: Path, column: str) -> None:
    said: list[str] = []
    rows = read_manifest(write(tmp_path / "l.csv", f"slide,{column},label\na.svs,P1,x\nb.svs,P1,y\n"), said.append)
    assert [row.patient for row in rows] == ["P1", "P1"]
    assert said == ([] if column == "patient" else [f"l.csv: patients from column {column}"])


@pytest.mark.parametrize("column", ["MPP", "mpp", "mpp_x", "Microns per pixel"])
def test_a_column_of_pixel_sizes_is_known_in_any_spelling(tmp_path: Path, column: str) -> None:
    (row,) = read_manifest(write(tmp_path / "l.csv", f"Slide,{column}\na.svs,0.4\n"))
    assert row.mpp == (0.4, 0.4)


def test_pixel_sizes_of_both_axes_and_with_a_comma(tmp_path: Path) -> None:
    (row,) = read_manifest(write(tmp_path / "l.csv", "slide;mpp_x;mpp_y\na.svs;0,25;0,26\n"))
    assert row.mpp == (0.25, 0.26)


@pytest.mark.parametrize("column", ["patiant", "patients", "slide_mpp", "pixel_size_um", "splits"])
def test_what_looks_like_a_known_column_is_refused_by_name(tmp_path: Path, column: str) -> None:
    with pytest.raises(SettingsError, match=f"column '{column}' looks like"):
        read_manifest(write(tmp_path / "l.csv", f"slide,{column},label\na.svs,1,x\n"))


def test_columns_of_a_clinical_table_are_not_taken_for_others(tmp_path: Path) -> None:
    (row,) = read_manifest(write(tmp_path / "l.csv", "slide,patient_age,stage,grade,site\na.svs,64,2,3,b\n"))
    assert row.label("patient_age") == "64"
    assert row.patient is None


def test_two_columns_of_patients_that_disagree_are_refused(tmp_path: Path) -> None:
    alike = read_manifest(write(tmp_path / "a.csv", "slide,case_id,patient_id\na,1,x\nb,1,x\nc,2,y\n"))
    assert [row.patient for row in alike] == ["1", "1", "2"]
    with pytest.raises(SettingsError, match="case_id and patient_id may both be the patient"):
        read_manifest(write(tmp_path / "b.csv", "slide,case_id,patient_id\na,1,x\nb,1,y\nc,2,y\n"))


def test_one_patient_in_two_spellings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"patients 'P1' \(line 2\) and 'p1' \(line 3\) look like one"):
        read_manifest(write(tmp_path / "l.csv", "slide,patient\na,P1\nb,p1\n"))


def test_rows_without_a_patient_are_counted(tmp_path: Path) -> None:
    said: list[str] = []
    rows = read_manifest(write(tmp_path / "l.csv", "slide,patient\na,P1\nb,\nc,NaN\n"), said.append)
    assert [row.patient for row in rows] == ["P1", None, None]
    assert said == ["l.csv: 2 rows name no patient (line 3); each counts as a patient of its own"]


@pytest.mark.parametrize(
    ("text", "coding"),
    [
        ("slide;label\na.svs;x\n", "utf-8"),
        ("slide\tlabel\na.svs\tx\n", "utf-16"),
        ("slide|label\r\na.svs|x\r\n", "utf-8-sig"),
        ("sep=;\nslide;label\na.svs;x\n", "utf-8"),
        (" slide , label\n a.svs , x \n,\n", "utf-8"),
        ("FILENAME,Label\na.svs,x\n", "utf-8"),
        ("\nslide_id,label\na.svs,x\n", "utf-8"),
    ],
)
def test_any_separator_and_coding_is_read(tmp_path: Path, text: str, coding: str) -> None:
    (row,) = read_manifest(write(tmp_path / "l.csv", text, coding))
    assert (row.slide.name, row.label("label")) == ("a.svs", "x")


def test_a_table_without_slides_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Found, separated by semicolon: name, label. .*slide,patient,label"):
        read_manifest(write(tmp_path / "l.csv", "name;label\na;x\n"))
    with pytest.raises(SettingsError, match="this is a spreadsheet"):
        read_manifest(write(tmp_path / "l.xlsx", "PK\x03\x04"))


def test_only_suffixes_of_slides_are_cut() -> None:
    assert [slide_stem(name) for name in ("P10.3", "P10.svs", "a.OME.TIF", "x.y.ndpi", ".svs")] == [
        "P10.3",
        "P10",
        "a",
        "x.y",
        ".svs",
    ]


def test_numbers_and_spellings() -> None:
    assert [number(text) for text in ("1", "1.0", "1,5", "-.5", "1_0", "nan", "inf", "1e3", "")] == [
        1,
        1,
        1.5,
        -0.5,
        None,
        None,
        None,
        1000,
        None,
    ]
    assert spelling("0.0") == spelling("0")
    assert spelling(" Benign  Nevus") == spelling("benign nevus")
    assert spelling("1,5") == spelling("1.5") != spelling("15")


def pictures(folder: Path, *names: str) -> list[Path]:
    found = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        found.append(path)
    return found


def test_a_row_with_a_folder_means_that_file_alone(tmp_path: Path) -> None:
    a, b = pictures(tmp_path, "siteA/S01.tif", "siteB/S01.tif")
    table = write(tmp_path / "m.csv", "slide,mpp\nsiteA/S01.tif,0.4\n")
    said: list[str] = []
    assert list(rows_of_slides(read_manifest(table), [a, b], table, said.append)) == [a]
    assert rows_of_slides(read_manifest(table), [b], table, said.append) == {}
    assert said[-2].startswith("m.csv: 1 rows match no slide given: line 2, S01.tif")
    assert said[-1] == "m.csv: 1 of 1 slides have no row: S01.tif"


def test_a_bare_name_that_two_slides_have_is_refused_with_both(tmp_path: Path) -> None:
    a, b = pictures(tmp_path, "siteA/S01.tif", "siteB/S01.tif")
    table = write(tmp_path / "m.csv", "slide,mpp\nS01.tif,0.4\n")
    with pytest.raises(SettingsError, match=f"line 2: S01.tif can mean {a} and {b}"):
        rows_of_slides(read_manifest(table), [a, b], table, lambda text: None)
    assert list(rows_of_slides(read_manifest(table), [b], table, lambda text: None)) == [b]


def test_other_case_windows_paths_and_missing_suffixes_are_matched_or_told(tmp_path: Path) -> None:
    a, b, c = pictures(tmp_path, "siteA/S01.tif", "S02.svs", "S03.svs")
    table = write(tmp_path / "m.csv", "slide,mpp\nsiteA\\S01.tif,0.4\ns02.SVS,0.5\nS03,0.6\nC:\\scans\\S04.svs,0.7\n")
    said: list[str] = []
    found = rows_of_slides(read_manifest(table), [a, b, c], table, said.append)
    assert {path.name: row.mpp[0] for path, row in found.items() if row.mpp} == {"S01.tif": 0.4, "S02.svs": 0.5, "S03.svs": 0.6}
    assert said[0] == "m.csv: 2 rows are matched in another spelling: line 3, s02.SVS: S02.svs, line 4, S03: S03.svs"
    assert "line 5, S04.svs (did you mean S0" in said[1]


def test_twenty_thousand_rows_are_matched_at_once(tmp_path: Path) -> None:
    slides = [tmp_path / f"S{index}.svs" for index in range(20_000)]
    table = write(tmp_path / "m.csv", "slide,mpp\n" + "".join(f"{slide.name},0.4\n" for slide in slides))
    assert len(rows_of_slides(read_manifest(table), slides, table, lambda text: None)) == 20_000


def test_a_column_that_is_asked_for_is_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "slide,patient,case\na,P1,0\nb,P2,1\n")
    assert [row.label("case") for row in read_manifest(path, asked=["case"])] == ["0", "1"]
    path = write(tmp_path / "p.csv", "slide,part,inpatient,micronodular\na,A,0,1\nb,B,1,0\n")  # of the specimen
    assert [row.label("part") for row in read_manifest(path)] == ["A", "B"]


def test_long_and_dotted_ids_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "slide,patient\na,2023000000001\nb,2023000000002\nc,10.1\nd,10.10\n")
    assert len({row.patient for row in read_manifest(path)}) == 4
    with pytest.raises(SettingsError, match=r"patients '7' \(line 2\) and '7.0'"):
        read_manifest(write(tmp_path / "m.csv", "slide,patient\na,7\nb,7.0\n"))


def test_a_loose_match_does_not_stand_in_the_way_of_an_exact_one(tmp_path: Path) -> None:
    (slide,) = pictures(tmp_path, "S1.svs")
    table = write(tmp_path / "m.csv", "slide,mpp\nS1.tif,0.5\nS1.svs,0.4\n")
    found = rows_of_slides(read_manifest(table), [slide], table, lambda text: None)
    assert found[slide].mpp == (0.4, 0.4)


def test_a_part_is_known_in_the_spellings_of_the_field() -> None:
    assert [part_named(text) for text in ("Val", "TRAINING", "hold-out", "fold 3")] == ["validation", "train", "test", None]


def test_the_data_folder_of_a_slide_is_not_the_slide(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"")
    (row,) = read_manifest(write(tmp_path / "l.csv", "slide\na\n"))
    assert existing_slide(row) == tmp_path / "a.mrxs"


def test_columns_that_differ_in_case_alone_are_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'Label' and 'LABEL' can both be meant"):
        read_manifest(write(tmp_path / "l.csv", "slide,Label,LABEL\na.svs,x,y\n"), asked=["label"])


def test_a_slide_of_the_same_name_in_another_folder_is_not_asked_back_for(tmp_path: Path) -> None:
    said: list[str] = []
    table = write(tmp_path / "l.csv", "slide\nb/a.svs\nc/d.svs\n")
    rows_of_slides(read_manifest(table), [tmp_path / "c" / "a.svs", tmp_path / "c" / "d.svs"], table, said.append)
    assert "line 2, a.svs (there is one in another folder)" in said[0]


@pytest.mark.parametrize(
    "column",
    ["\u00b5m/px", "\u03bcm per pixel", "um/px", "\u00b5m/pixel ", "spacing", "physical_size_x", "resolution", "Pixel width"],
)
def test_a_pixel_size_is_taken_or_refused_and_never_passed_over(column: str, tmp_path: Path) -> None:
    """`pathovit info` itself heads it with a micro sign."""
    table = write(tmp_path / "l.csv", f"slide,{column}\na.svs,0.4\n")
    try:
        (row,) = read_manifest(table)
        assert row.mpp == (0.4, 0.4)
    except SettingsError as error:
        assert "looks like `mpp`" in str(error)
    words = write(tmp_path / "w.csv", "slide,resolution\na.svs,high\n")
    assert read_manifest(words)[0].label("resolution") == "high"


@pytest.mark.parametrize("column", ["set", "dataset", "Data split", "phase", "fold"])
def test_parts_are_heeded_whatever_their_column_is_called(column: str, tmp_path: Path) -> None:
    said: list[str] = []
    rows = read_manifest(write(tmp_path / "l.csv", f"slide,{column},qc\na,train,valid\nb,Test,valid\nc,,valid\n"), said.append)
    assert [row.label("split") for row in rows] == ["train", "test", ""]
    assert said == [f"l.csv: parts from column {column}"]
    other = read_manifest(write(tmp_path / "o.csv", f"slide,{column}\na,1\nb,2\n"))
    assert other[0].label("split") is None


@pytest.mark.parametrize(
    "column", ["bcr_patient_barcode", "case_submitter_id", "cases.submitter_id", "TCGA Participant Barcode", "donor_id", "MRN"]
)
def test_patients_of_registries_are_known(column: str, tmp_path: Path) -> None:
    rows = read_manifest(write(tmp_path / "l.csv", f"slide,{column}\na,P1\nb,P1\n"))
    assert [row.patient for row in rows] == ["P1", "P1"]


@pytest.mark.parametrize("column", ["patient_local_id", "hospital patient nr", "participant_uuid"])
def test_what_looks_like_patients_is_refused(column: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="looks like `patient`"):
        read_manifest(write(tmp_path / "l.csv", f"slide,{column}\na,P1\nb,P1\n"))


@pytest.mark.parametrize(("one", "other"), [("M\u00fcller", "Mu\u0308ller"), ("1", "1,0"), ("007", "7"), ("P 1", "p  1")])
def test_a_patient_in_two_forms_is_refused(one: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="look like one"):
        read_manifest(write(tmp_path / "l.csv", f"slide;patient\na;{one}\nb;{other}\n"))


@pytest.mark.parametrize("value", ["#N/A", "#WERT!", "#DIV/0!", "<NA>", "'--", "[Not Available]", "not reported", "Unknown"])
def test_what_stands_for_nothing_is_no_class(value: str, tmp_path: Path) -> None:
    rows = read_manifest(write(tmp_path / "l.csv", f"slide,label\na,tumour\nb,normal\nc,{value}\n"))
    with pytest.raises(SettingsError, match="Line 4: label is"):
        read_target(rows, ["label"], None, None)
    signs = read_manifest(write(tmp_path / "s.csv", "slide,label\na,+\nb,-\n"))
    assert read_target(signs, ["label"], None, None).task == "binary", "of a receptor, say"


def test_numbers_with_decimals_are_a_measurement_and_a_slip_among_them_is_named(tmp_path: Path) -> None:
    comma = "".join(f"s{index};{index},5\n" for index in range(6))
    assert (
        read_target(read_manifest(write(tmp_path / "c.csv", f"slide;label\n{comma}")), ["label"], None, None).task == "regression"
    )
    whole = "".join(f"s{index},{index % 4}\n" for index in range(8))
    assert (
        read_target(read_manifest(write(tmp_path / "w.csv", f"slide,label\n{whole}")), ["label"], None, None).task == "multiclass"
    )
    many = "".join(f"s{index},{index}\n" for index in range(30)) + "s31,3x\n"
    rows = read_manifest(write(tmp_path / "m.csv", f"slide,label\n{many}"))
    with pytest.raises(SettingsError, match="Line 32: '3x' is no number"):
        read_target(rows, ["label"], None, None)
    assert read_target(rows, ["label"], "multiclass", None).task == "multiclass"


def test_a_first_line_of_excel_can_name_the_tab(tmp_path: Path) -> None:
    (row,) = read_manifest(write(tmp_path / "l.csv", "sep=\t\nslide\tpatient\na\tP1\n"))
    assert row.patient == "P1"


def test_a_cell_that_is_no_file_name_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"line 2: the slide 'aaa.*is no file name"):
        read_manifest(write(tmp_path / "l.csv", f"path\n{'a' * 300}/b.svs\n"))


@pytest.mark.parametrize("column", ["patient_covid", "PatientAvoid", "subject_thyroid", "personal note", "tumour_spacing"])
def test_words_that_hold_others_are_no_known_columns(column: str, tmp_path: Path) -> None:
    (row,) = read_manifest(write(tmp_path / "l.csv", f"slide,{column}\na.svs,0.25\n"))
    assert (row.patient, row.mpp, row.label(column)) == (None, None, "0.25")


@pytest.mark.parametrize("column", ["PatientUUID", "patient.local.number", "Subject no", "patientkey", "TCGAPatientID"])
def test_words_are_known_however_they_are_joined(column: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="looks like `patient`"):
        read_manifest(write(tmp_path / "l.csv", f"slide,{column}\na.svs,1\n"))


@pytest.mark.parametrize("cell", ["-", "n.a.", "."])
def test_what_stands_for_no_part_hides_no_split(cell: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="line 4: split is"):
        read_manifest(write(tmp_path / "l.csv", f"slide,label,phase\na,1,train\nb,0,test\nc,1,{cell}\n"))


def test_of_several_columns_of_parts_none_is_taken(tmp_path: Path) -> None:
    text = "slide,fold_0,fold_1,qc\na,train,test,valid\nb,test,train,valid\n"
    rows = read_manifest(write(tmp_path / "l.csv", text))
    assert [row.label("split") for row in rows] == [None, None]
    assert rival_splits(rows) == ["fold_0", "fold_1"]
    assert rival_splits(rows, ["Fold 0"]) == [], "one that is asked for as something else is no rival"
    assert rival_splits(read_manifest(write(tmp_path / "s.csv", text.replace("qc", "split").replace("valid", "train")))) == []
