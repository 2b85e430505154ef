import json
import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from conftest import ROOT, read_jsonl, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import UsageError
from utils.method import fuse
from utils.training.groups import fused_rankings, open_cache, write_training_file

GOLDEN = ROOT / "tests/golden"
DEFAULTS = {"supervised": False, "overwrite": True}


def fuse_files(folder, reason, retrieval, sampling="shift", weight=0.5, topk=20, passages=None, **options):
    output = folder / f"{sampling}.jsonl"
    write_training_file(
        reason_cache=reason, retrieval_cache=retrieval, docs=folder / "docs.jsonl",
        passages=passages or folder / "docs.passages.jsonl", output=output, weight=weight,
        args=SimpleNamespace(**DEFAULTS | {"sampling": sampling, "fusion_topk": topk, **options}),
    )  # fmt: skip
    manifest = json.loads(output.with_name(output.name + ".manifest.json").read_text())
    return read_jsonl(output), manifest


def published(query, scored):
    return {"query": query, "content": sorted(map(list, scored), key=lambda pair: -pair[1])}


def caches(folder, reason_rows, retrieval_rows):
    return write_jsonl(folder / "reason.jsonl", reason_rows), write_jsonl(folder / "retrieval.jsonl", retrieval_rows)


def numbered(count, query="q", shift=0.0):
    return published(query, [(f"passage {i}", math.sin(i * 1.7 + shift)) for i in range(count)])


@pytest.mark.parametrize("sampling", ["shift", "iteration", "shift_all_neg"])
def test_golden_lines_come_out_field_for_field(run_script, tmp_path, sampling):
    output = tmp_path / "out.jsonl"
    result = run_script(
        "score_cache_to_dataset.py", "--reason_cache", GOLDEN / "reason_score_cache.jsonl", "--retrieval_cache",
        GOLDEN / "retrieval_score_cache.jsonl", "--sampling", sampling, "--output", output, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert output.read_text().splitlines() != []
    assert read_jsonl(output) == read_jsonl(GOLDEN / f"expected_{sampling}.jsonl")


def restated(reason, retrieval, weight, sampling):
    """The published semantics in plain loops, sharing no code with the product."""
    lines = []
    by_query = {row["query"]: dict(map(tuple, row["content"])) for row in retrieval}
    for row in reason:
        other = by_query[row["query"]]
        r_values, d_values = [s for _, s in row["content"]], list(other.values())
        fused = []
        for passage, score in row["content"]:
            a = (score - min(r_values)) / (max(r_values) - min(r_values))
            b = (other[passage] - min(d_values)) / (max(d_values) - min(d_values))
            fused.append((passage, weight * a + (1 - weight) * b))
        top = [passage for passage, _ in sorted(fused, key=lambda pair: pair[1], reverse=True)][:20]
        if sampling == "shift":
            lines.append((row["query"], [top[0]], [top[i] for i in (3, 4, 6, 9, 13, 18)]))
        elif sampling == "shift_all_neg":
            lines.append((row["query"], [top[0]], top[3:20]))
        else:
            for start in (0, 5, 10, 15):
                for i in range(4):
                    lines.append((row["query"], [top[start + i]], top[start + i + 1 : start + 5]))
    return lines


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(20, 50), min_size=1, max_size=4),
    weight=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    sampling=st.sampled_from(["shift", "iteration", "shift_all_neg"]),
    ties=st.booleans(),
)
def test_equal_to_the_published_semantics_restated(tmp_path_factory, seed, sizes, weight, sampling, ties):
    rng = random.Random(seed)
    score = (lambda: rng.randrange(8) / 8) if ties else rng.random
    rows = [[], []]
    for i, size in enumerate(sizes):
        for kind in rows:
            scored = [(f"passage {i}-{j}", score()) for j in range(size - 2)]
            kind.append(published(f"question {i}", [*scored, (f"passage {i}-low", -1.0), (f"passage {i}-high", 2.0)]))
    rng.shuffle(rows[1])  # joined by question, not by position
    folder = tmp_path_factory.mktemp("differential")
    lines, _ = fuse_files(folder, *caches(folder, *rows), sampling, weight)
    assert [(r["query"], r["pos"], r["neg"]) for r in lines] == restated(*rows, weight, sampling)


def test_own_format_gives_the_same_lines_as_the_published(tmp_path):
    texts: dict[str, str] = {}
    own = []
    for name in ("reason", "retrieval"):
        rows = []
        for i, row in enumerate(read_jsonl(GOLDEN / f"{name}_score_cache.jsonl")):
            ids = [texts.setdefault(text, f"id{len(texts)}") for text, _ in row["content"]]
            scores = [score for _, score in row["content"]]
            rows.append({"id": str(i), "query": row["query"], "passage_ids": ids, "scores": scores})
        own.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    write_jsonl(tmp_path / "docs.passages.jsonl", [{"id": pid, "contents": text} for text, pid in texts.items()])
    lines, _ = fuse_files(tmp_path, *own)
    assert lines == read_jsonl(GOLDEN / "expected_shift.jsonl")
    published_size = (GOLDEN / "reason_score_cache.jsonl").stat().st_size
    assert own[0].stat().st_size < published_size / 2  # these texts are twelve words; real ones a hundred


@pytest.mark.parametrize(("answers", "positives"), [(["p4", "p13", "p5"], 0), (["p4", "p13", "p0"], 1)])
def test_passages_with_an_answer_are_counted(tmp_path, answers, positives):
    ids = [f"p{i}" for i in range(20)]
    row = {"id": "1", "query": "q", "passage_ids": ids, "scores": [20.0 - i for i in range(20)]}
    write_jsonl(tmp_path / "docs.passages.jsonl", [{"id": p, "contents": f"T\nthe {p} passage"} for p in ids])
    write_jsonl(tmp_path / "docs.jsonl", [{"id": "1", "question": "q", "golden_answers": answers}])
    _, manifest = fuse_files(tmp_path, *caches(tmp_path, [row], [row]))
    assert manifest["facts"]["negatives"] == 6
    assert manifest["facts"]["negatives with an answer"] == 2
    assert (manifest["facts"]["positives"], manifest["facts"]["positives with an answer"]) == (1, positives)


def test_questions_without_rationale_are_left_out_and_counted(tmp_path):
    reason = [numbered(25, "kept")]
    lines, manifest = fuse_files(tmp_path, *caches(tmp_path, reason, [numbered(25, "kept", 1), numbered(25, "lost")]))
    assert [line["query"] for line in lines] == ["kept"]
    assert manifest["dropped"] == {"questions without a rationale score": 1}


def test_too_few_passages_and_constant_scores_are_left_out_and_counted(tmp_path):
    constant = published("constant", [(f"passage {i}", 0.5) for i in range(25)])
    rows = [numbered(25, "full"), numbered(18, "few"), constant]
    lines, manifest = fuse_files(tmp_path, *caches(tmp_path, rows, rows))
    assert [line["query"] for line in lines] == ["full"]
    assert manifest["dropped"] == {"questions with too few passages": 1, "questions without any order": 1}


def test_one_constant_list_leaves_the_order_to_the_other(tmp_path):
    constant = published("q", [(f"passage {i}", 0.5) for i in range(25)])
    lines, manifest = fuse_files(tmp_path, *caches(tmp_path, [constant], [numbered(25)]))
    alone, _ = fuse_files(tmp_path, *caches(tmp_path, [numbered(25)], [numbered(25)]))
    assert lines == alone
    assert manifest["facts"]["constant score lists"] == 1


def test_a_repeated_passage_counts_once_with_its_best_score(tmp_path):
    row = numbered(25)
    repeated = {"query": "q", "content": [*row["content"], [row["content"][0][0], -5.0]]}
    lines, manifest = fuse_files(tmp_path, *caches(tmp_path, [repeated], [row]))
    assert lines == fuse_files(tmp_path, *caches(tmp_path, [row], [row]))[0]
    assert manifest["dropped"] == {"repeated passages": 1}


def test_equal_texts_under_two_ids_never_face_each_other(tmp_path):
    ids = [f"p{i}" for i in range(30)]
    row = {"id": "1", "query": "q", "passage_ids": ids, "scores": [30.0 - i for i in range(30)]}
    texts = {pid: f"T\ntext {pid}" for pid in ids} | {"p3": "T\ntext p0"}
    write_jsonl(tmp_path / "docs.passages.jsonl", [{"id": p, "contents": t} for p, t in texts.items()])
    lines, manifest = fuse_files(tmp_path, *caches(tmp_path, [row], [row]))
    assert lines[0]["pos"] == ["T\ntext p0"]
    assert lines[0]["neg"] == [f"T\ntext p{i}" for i in (4, 5, 7, 10, 14, 19)]
    assert manifest["dropped"] == {"repeated passages": 1}


def test_a_passage_without_text_is_named_even_where_it_would_not_be_chosen(tmp_path):
    ids = [f"p{i}" for i in range(20)]
    row = {"id": "1", "query": "q", "passage_ids": ids, "scores": [20.0 - i for i in range(20)]}
    texts = [{"id": p, "contents": f"T\n{p}"} for p in ids]
    path = write_jsonl(tmp_path / "docs.passages.jsonl", [*texts[:5], {"id": "p5", "contents": " "}, *texts[6:]])
    with pytest.raises(UsageError, match=f"{path}:6: field 'contents'"):
        fuse_files(tmp_path, *caches(tmp_path, [row], [row]))


def by_definition(reason, retrieval, weight):
    """Question by question, as the section on fusion has it: passages ranked by the fused score."""
    other = {row["id"]: dict(zip(row["passage_ids"], row["scores"], strict=True)) for row in retrieval}
    for row in reason:
        pairs = sorted(zip(row["passage_ids"], row["scores"], strict=True), key=lambda pair: -pair[1])
        ids = [pid for pid, _ in pairs]
        scores = fuse([score for _, score in pairs], [other[row["id"]][pid] for pid in ids], weight)
        yield [pid for _, pid in sorted(zip(-scores, ids, strict=True), key=lambda pair: pair[0])]


@settings(max_examples=60, deadline=None)
@given(
    lists=st.lists(
        st.lists(st.tuples(st.integers(-5, 5), st.floats(-1e9, 1e9)), min_size=1, max_size=12), min_size=1, max_size=9
    ),
    weight=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_questions_are_ranked_as_the_definition_says(tmp_path_factory, lists, weight):
    rows = [[], []]
    for number, pairs in enumerate(lists):
        ids = [f"p{i}" for i in range(len(pairs) + 2)]  # the last two see to it that there is an order
        for kind, ends in ((0, [6, -6]), (1, [2e9, -2e9])):
            scores = [float(pair[kind]) for pair in pairs] + ends
            rows[kind].append({"id": str(number), "query": f"q{number}", "passage_ids": ids, "scores": scores})
    reason, retrieval = (open_cache(path, "reason") for path in caches(tmp_path_factory.mktemp("ranked"), *rows))
    ranked = list(fused_rankings(reason, retrieval, weight, Counter(), Counter()))
    assert [question.query for question in ranked] == [row["query"] for row in rows[0]]
    assert [question.passages for question in ranked] == list(by_definition(*rows, weight))


def many(count):
    ids = [f"p{i}" for i in range(22)]
    texts = [{"id": pid, "contents": f"T\ntext {pid}"} for pid in ids]
    rows = [
        {"id": str(n), "query": f"q{n}", "passage_ids": ids, "scores": [math.sin(i * n) for i in range(22)]}
        for n in range(count)
    ]
    return rows, texts


def test_questions_come_out_in_order_and_are_all_counted(tmp_path):
    rows, texts = many(517)  # the first has one score for all passages
    write_jsonl(tmp_path / "docs.passages.jsonl", texts)
    lines, manifest = fuse_files(tmp_path, *caches(tmp_path, rows, rows[::-1]))
    assert [line["query"] for line in lines] == [row["query"] for row in rows[1:]]
    ranked = list(by_definition(rows[1:], rows, 0.5))
    assert [line["pos"] for line in lines] == [[f"T\ntext {ids[0]}"] for ids in ranked]
    assert manifest["dropped"] == {"questions without any order": 1}
    assert manifest["facts"] == {"constant score lists": 0, "positives": len(lines), "negatives": 6 * len(lines)}


def test_a_bad_last_line_is_named_and_leaves_no_file(tmp_path):
    rows, texts = many(30)
    write_jsonl(tmp_path / "docs.passages.jsonl", texts)
    bad = [*rows[:-1], rows[-1] | {"scores": [1.0]}]
    with pytest.raises(UsageError, match=f"reason.jsonl:{len(rows)}: .*22 passage_ids but 1 scores"):
        fuse_files(tmp_path, *caches(tmp_path, bad, rows))
    assert not (tmp_path / "shift.jsonl").exists()


BAD = {
    "other question": ([numbered(25, "a")], [numbered(25, "b")], "question 'a' is not in"),
    "other passages": ([numbered(25)], [published("q", [(f"other {i}", i) for i in range(25)])], "one cache only"),
    "nan": ([published("q", [("a", math.nan), ("b", 1.0)])], [numbered(25)], "reason.jsonl:1: not valid JSON"),
    "null score": ([{"query": "q", "content": [["a", None]]}], [numbered(25)], "reason.jsonl:1: field 'content.0.1'"),
    "no query": ([{"content": [["a", 1.0]]}], [numbered(25)], "reason.jsonl:1: field 'id' or 'query' must name"),
    "no scores": ([{"query": "q", "text": "x"}], [numbered(25)], "reason.jsonl:1: field 'passage_ids'"),
    "blank passage": ([{"query": "q", "content": [["a", 1.0], [" ", 2.0]]}], [numbered(25)], "1: field 'content.1.0'"),
    "empty content": ([{"query": "q", "content": []}], [numbered(25)], "the question has no passages"),
    "twice": ([numbered(25), numbered(25)], [numbered(25)], "reason.jsonl:2: 'q' is on line 1 too"),
    "empty": ([], [numbered(25)], "reason.jsonl has no rows"),
    "nothing left": ([numbered(5)], [numbered(5)], "no training line"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_cache_is_a_clear_error_and_leaves_no_file(tmp_path, case):
    reason, retrieval, message = BAD[case]
    with pytest.raises(UsageError) as error:
        fuse_files(tmp_path, *caches(tmp_path, reason, retrieval))
    assert message in str(error.value)
    assert not (tmp_path / "shift.jsonl").exists()


def test_a_weight_or_topk_that_cannot_work_is_refused(run_script, tmp_path):
    for flags, message in (
        (["--reason_weight", "1.5"], "at least 0 and at most 1"),
        (["--fusion_topk", "10"], "needs --fusion_topk 19"),
        (["--sampling", "shift_all_neg", "--fusion_topk", "3"], "needs --fusion_topk 4"),
        (["--sampling", "best"], "none of shift, iteration, shift_all_neg"),
    ):
        result = run_script("score_cache_to_dataset.py", *flags, cwd=tmp_path)
        assert (result.returncode, message in result.stderr) == (2, True), result.stderr


# ---------------------------------------------------------------- beyond the paper: answers


@pytest.fixture
def with_answers(tmp_path):
    """Thirty passages whose fused order is their number; 2, 3 and 5 contain the answer."""
    ids = [f"p{i}" for i in range(30)]
    texts = [f"passage {i}" + (" in paris" if i in (2, 3, 5) else "") for i in range(30)]
    write_jsonl(tmp_path / "docs.passages.jsonl", [{"id": i, "contents": t} for i, t in zip(ids, texts, strict=True)])
    row = {"id": "q1", "question": "q", "golden_answers": ["Paris"], "passage_ids": ids, "scores": [0.0] * 30}
    write_jsonl(tmp_path / "docs.jsonl", [row])
    scored = {"id": "q1", "query": "q", "passage_ids": ids, "scores": [float(30 - i) for i in range(30)]}
    return tmp_path, caches(tmp_path, [scored], [scored]), texts


def test_supervised_groups_by_hand(with_answers):
    folder, files, texts = with_answers
    [line], manifest = fuse_files(folder, *files, supervised=True)
    assert line["pos"] == [texts[2]]
    # Without 2, 3 and 5, the passages behind the positive are 0 1 4 6 7 8 ...: ranks 3 4 6 9 13 18 of the whole.
    others = [i for i in range(30) if i not in (2, 3, 5)]
    assert line["neg"] == [texts[others[rank - 1]] for rank in (3, 4, 6, 9, 13, 18)]
    assert line["neg"][:2] == ["passage 4", "passage 6"]
    assert manifest["facts"] | {"positives with an answer": 1, "negatives with an answer": 0} == manifest["facts"]
    assert manifest["settings"]["supervised"] is True


def test_a_question_without_an_answer_has_no_supervised_group_and_is_counted(with_answers):
    folder, (reason, retrieval), _ = with_answers
    row = read_jsonl(folder / "docs.jsonl")[0] | {"id": "q2", "question": "q2", "golden_answers": ["Rome"]}
    write_jsonl(folder / "docs.jsonl", [*read_jsonl(folder / "docs.jsonl"), row])
    for path in (reason, retrieval):
        write_jsonl(path, [*read_jsonl(path), read_jsonl(path)[0] | {"id": "q2", "query": "q2"}])
    lines, manifest = fuse_files(folder, reason, retrieval, supervised=True)
    assert [line["query"] for line in lines] == ["q"]
    assert manifest["dropped"]["questions without an answer in their passages"] == 1
    assert manifest["facts"]["candidate lists with an answer"] == 0.5


def test_answer_matching_needs_the_candidates_file(with_answers):
    folder, files, _ = with_answers
    (folder / "docs.jsonl").unlink()
    with pytest.raises(UsageError, match="needs the candidates file"):
        fuse_files(folder, *files, supervised=True)


def test_the_chain_tells_where_the_answers_stand_by_each_score(with_answers, capsys):
    folder, (reason, retrieval), _ = with_answers
    row = read_jsonl(reason)[0]
    write_jsonl(reason, [row | {"scores": [float(i == 3) for i in range(30)]}])
    _, manifest = fuse_files(folder, reason, retrieval)
    facts = manifest["facts"]
    assert (facts["mrr retrieval"], facts["mrr rationale"], facts["mrr fused"]) == pytest.approx((1 / 3, 1, 1))
    assert (facts["first retrieval"], facts["first rationale"], facts["candidate lists with an answer"]) == (0, 1, 1)
    said = "100.0% of the candidate lists contain an answer; its MRR by retrieval score 0.333 (0.0% in first place)"
    assert said in capsys.readouterr().out


def test_one_cache_alone_tells_of_one_score(with_answers, capsys):
    folder, (_, retrieval), _ = with_answers
    facts = fuse_files(folder, retrieval, retrieval)[1]["facts"]
    assert facts["mrr this"] == pytest.approx(1 / 3)
    assert not {"mrr retrieval", "mrr rationale", "mrr fused"} & facts.keys()
    assert "its MRR by this score 0.333 (0.0% in first place)\n" in capsys.readouterr().out


def test_equal_scores_keep_their_own_order_in_the_chain(with_answers):
    """Ranked by the fused order, equal retrieval scores would be credited with what the rationale knows."""
    folder, (reason, retrieval), _ = with_answers
    row = read_jsonl(reason)[0]
    write_jsonl(reason, [row | {"scores": [float(i == 3) for i in range(30)]}])
    write_jsonl(retrieval, [row | {"scores": [1.0] * 30}])
    facts = fuse_files(folder, reason, retrieval)[1]["facts"]
    assert (facts["mrr retrieval"], facts["mrr rationale"], facts["mrr fused"]) == pytest.approx((1 / 3, 1, 1))
    write_jsonl(retrieval, [row])
    write_jsonl(reason, [row | {"scores": [0.5] * 30, "passage_ids": row["passage_ids"][::-1]}])
    facts = fuse_files(folder, reason, retrieval)[1]["facts"]
    assert (facts["mrr retrieval"], facts["mrr rationale"], facts["mrr fused"]) == pytest.approx((1 / 3, 1 / 25, 1 / 3))
