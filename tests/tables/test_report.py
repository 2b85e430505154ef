"""The report in a real browser: what it shows, what it finds, and that hostile text stays text."""

import html
import json
import re
import shutil

import pytest
import yaml
from conftest import ROOT, questions, write_jsonl

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & <b>bold</b>"
pytestmark = pytest.mark.slow
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def made(tmp_path_factory, run_script, index, corpus, tiny_encoder, tiny_reranker):
    """A small experiment, its phases run for real but for the LLM's answers, which are written by hand."""
    folder = tmp_path_factory.mktemp("report")
    profile = {
        "common": {"dataset": "own", "train_questions": 0},
        "retrieval": {
            "retriever_path": str(tiny_encoder), "index_path": str(index), "corpus_path": str(corpus),
            "retrieval_batch_size": 4,
        },
        "get_docs": {"docs_topk": 25},
        "scoring": {"scorer": "encoder", "model_path": str(tiny_encoder), "scorer_max_length": 128},
        "rag": {"framework": "none"},
    }  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(profile))
    experiment = {
        "title": "A title with <b>markup</b>",
        "tasks": {"own": {"config": "own.yaml"}},
        "generators": {"none": {}},
        "rerankers": {"tiny": {"base_model": str(tiny_reranker)}},
        "tables": {
            "main": {"caption": "Ranking", "tasks": ["own"], "conditions": ["retriever", "base", "radio", "oracle"],
                     "metrics": ["mrr", "recall@1", "em"]},
        },
    }  # fmt: skip
    (folder / "experiments").mkdir()
    (folder / "experiments/own.yaml").write_text(yaml.safe_dump(experiment))
    rows = questions(6)
    rows[1]["question"] += HOSTILE
    write_jsonl(folder / "dataset/own/test.jsonl", rows)
    write_jsonl(folder / "dataset/own/train.jsonl", rows)
    reasons = [row | {"reason": f"Because {row['golden_answers'][0]}. {HOSTILE}"} for row in rows]
    write_jsonl(folder / "dataset/own/reason/train_with_reason.jsonl", reasons)

    def run(*words):
        result = run_script(*words, cwd=folder)
        assert result.returncode == 0, result.stderr
        return result

    for phase in (
        "--phase=get_docs",
        "--phase=generate_dataset --method=reason",
        "--phase=generate_dataset --method=retrieval",
    ):
        run("dataset_generation.py", "--config", "own.yaml", *phase.split())
    run("score_cache_to_dataset.py", "--config", "own.yaml")
    rag = ["run_rag.py", "--config", "own.yaml", "--run_name"]
    run(*rag, "own.none.retriever")
    run(*rag, "own.none.oracle", "--rerank_model_name", "oracle")
    for condition, name in (("base", "tiny"), ("w0.5", "tiny_w0.5")):
        run(*rag, f"own.none.tiny.{condition}", "--rerank_model_path", tiny_reranker, "--rerank_model_name", name)
    for name, right in {"own.none.retriever": [], "own.none.tiny.base": [0, 1], "own.none.tiny.w0.5": [1, 2]}.items():
        path = folder / f"output/{name}/intermediate_data.json"
        answered = json.loads(path.read_text())
        for i, row in enumerate(answered):
            row["output"]["pred"] = f"answer {i} {HOSTILE if i == 3 else ''}"
            row["output"]["metric_score"] |= {"em": float(i in right), "f1": 0.5}
        path.write_text(json.dumps(answered))
    run("report.py", "--profile", "own")
    return folder / "output/report.html"


def test_the_page_needs_nothing_else(made):
    text = html.unescape(made.read_text())
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "default-src 'none'" in text
    assert text.count("<script") == 2
    assert "A title with &lt;b&gt;markup" in made.read_text()


def test_the_same_runs_give_the_same_page(made, run_script):
    again = run_script("report.py", "--profile", "own", "--output", "again.html", cwd=made.parent.parent)
    assert again.returncode == 0, again.stderr
    assert (made.parent.parent / "again.html").read_bytes() == made.read_bytes()


def test_tables_plots_and_phases_are_there(made):
    text = made.read_text()
    assert text.count('<img alt="') == 2
    assert "Answer recall by rank, own" in text
    assert "Scores of the candidates, dataset/own: training" in text
    for script in ("dataset_generation.py get_docs", "dataset_generation.py generate_dataset reason", "run_rag.py"):
        assert f">{script}<" in text


def test_without_runs_the_command_is_told(run_script, tmp_path):
    for name in ("experiments", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "experiments/paper.yaml").rename(tmp_path / "experiments/own.yaml")
    result = run_script("report.py", "--profile", "own", cwd=tmp_path)
    assert result.returncode == 2
    assert "python paper_tables.py --profile own --run" in result.stderr


@pytest.fixture(scope="module")
def browser(made):
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--window-size=1280,1000"):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.get(made.as_uri())
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, made):
    from selenium.webdriver.support.ui import Select

    browser.get("about:blank")  # the address of the last test names a question
    browser.get(made.as_uri())

    class Page:
        def all(self, selector):
            return browser.find_elements("css selector", selector)

        def one(self, selector):
            return browser.find_element("css selector", selector)

        def select(self, selector, text):
            Select(self.one(selector)).select_by_visible_text(text)

        def listed(self):
            return [button.text for button in self.all("#list button")]

    return Page()


def test_nothing_is_blocked_or_fails_in_the_browser(browser, page):
    assert page.one("#detail h3").text
    assert browser.get_log("browser") == []
    for picture in page.all("img"):
        assert browser.execute_script("return arguments[0].naturalWidth", picture) > 100


def test_hostile_text_is_shown_and_does_nothing(browser, page):
    assert browser.title == "RADIO: A title with <b>markup</b>"
    page.all("#list button")[1].click()
    assert HOSTILE.split(" &")[0] in page.one("#detail h3").text
    page.select("#view", "dataset/own: training")
    assert HOSTILE.split(" &")[0] in page.one("#detail").text
    assert page.all("#detail img, #detail b, #detail script") == []
    assert browser.title == "RADIO: A title with <b>markup</b>"


def test_search_and_outcome_filters_find_questions(page):
    assert page.one("#count").text == "6 of 6 questions"
    page.one("#search").send_keys("harbour number 5")
    assert page.listed() == ["where is the harbour number 5"]
    assert page.one("#detail h3").text == "where is the harbour number 5 link"
    page.one("#search").clear()
    page.one("#search").send_keys("about the river")
    assert page.one("#count").text == "0 of 6 questions"
    page.one("#deep").click()
    assert page.one("#count").text == "6 of 6 questions"
    page.one("#search").clear()
    page.one("#search").send_keys("nobody wrote this")
    assert page.one("#count").text == "0 of 6 questions"
    assert page.one("#detail").text == "No question matches."


def test_two_conditions_can_be_compared(page):
    runs, verdicts = page.all("#outcomes [aria-label=condition]"), page.all("#outcomes [aria-label^='its answer']")
    from selenium.webdriver.support.ui import Select

    for run, verdict, name, value in zip(
        runs, verdicts, ["base reranker", "RADIO: both, fused"], ["wrong", "right"], strict=True
    ):
        Select(run).select_by_visible_text(name)
        Select(verdict).select_by_visible_text(value)
    assert page.listed() == ["where is the engine number 2"]
    assert [cell.text for cell in page.all("#detail table:first-of-type td .right")] == ["✓ answer 2"]


def test_a_filter_finds_where_radio_and_its_base_differ(page):
    buttons = {button.text: button for button in page.all("#presets button")}
    assert list(buttons) == ["base wrong, RADIO right", "base right, RADIO wrong", "all"]
    buttons["base wrong, RADIO right"].click()
    assert page.listed() == ["where is the engine number 2"]
    buttons["base right, RADIO wrong"].click()
    assert page.one("#presets [aria-pressed=true]").text == "base right, RADIO wrong"
    assert [text.split("?")[0][:30] for text in page.listed()] == ["where is the river number 0"]
    buttons["all"].click()
    assert len(page.listed()) == 6


def test_without_answers_a_condition_is_right_if_its_first_passage_has_one(browser, page):
    script = """
        const question = { relevant: ["p2"], runs: {
          first: { right: null, ranking: [["p2", 1], ["p1", 0]] },
          second: { right: null, ranking: [["p1", 1], ["p2", 0]] },
          wrong: { right: false, ranking: [["p2", 1]] }, none: { right: null, ranking: [] } } };
        return ["first", "second", "wrong", "none", "missing"].map((name) => outcome(question, name));"""
    assert browser.execute_script(script) == [True, False, False, None, None]


def test_keys_go_from_question_to_question_and_not_while_typing(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()
        return page.one("#list [aria-current=true]").text

    titles = page.listed()
    assert press("k") == titles[0]
    assert press("j", Keys.ARROW_RIGHT) == titles[2]
    assert press("k") == titles[1]
    assert press("f") == "where is the engine number 2"
    assert page.one("#presets [aria-pressed=true]").text == "base wrong, RADIO right"
    press("f", "f")
    assert len(page.listed()) == 6
    press("/")
    page.one("#search").send_keys("j")
    assert page.one("#search").get_attribute("value") == "j"
    assert page.one("#count").text == "0 of 6 questions"


def test_each_question_has_an_address(browser, made):
    from selenium.webdriver.common.action_chains import ActionChains

    browser.get(made.as_uri())
    assert browser.current_url == made.as_uri()
    browser.find_elements("css selector", "#list button")[3].click()
    ActionChains(browser).send_keys("j").perform()
    address = browser.current_url
    title = browser.find_element("css selector", "#detail h3").text
    assert title.startswith("where is the glacier number 4")
    assert browser.find_element("css selector", "#detail h3 a").get_attribute("href") == address
    browser.get("about:blank")
    browser.get(address)
    assert browser.find_element("css selector", "#detail h3").text == title
    browser.get(made.as_uri() + "#view=dataset%2Fown%3A+training&question=q1")
    assert browser.find_element("css selector", "#detail h4").text == "Rationale"
    browser.get(made.as_uri() + "#view=nobody&question=%")
    assert browser.find_element("css selector", "#detail h3").text


@pytest.mark.parametrize("width", [1300, 700])
def test_nothing_is_cut_off_at_the_side(browser, page, width):
    browser.set_window_size(width, 1000)
    try:
        page.one("#phases summary").click()
        wide, window = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= window
        for box in page.all("#phases .wide"):
            assert browser.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", box)
    finally:
        browser.set_window_size(1280, 1000)


def test_candidates_show_ranks_before_and_after_and_the_rationale(browser, page):
    heads = [cell.text for cell in page.all("#detail .wide:last-of-type th")]
    assert heads == ["passage", "retriever's order", "base reranker", "RADIO: both, fused", "oracle: answers first"]
    rows = page.all("#detail .wide:last-of-type tbody tr")
    assert len(rows) == 20
    assert rows[0].find_elements("css selector", "td")[1].text.startswith("1 (")
    page.select("#view", "dataset/own: training")
    assert "Because number 0." in page.one("#detail").text
    assert len(page.all("#detail tbody tr")) == 25
    roles = [row.find_elements("css selector", "td")[-1].text for row in page.all("#detail tbody tr")]
    assert roles[0] == "positive"
    assert roles.count("negative") == 6
    page.one("#detail summary").click()
    assert page.one("#detail details p").is_displayed()


def test_a_screenshot_is_not_blank(browser, page, tmp_path):
    path = tmp_path / "page.png"
    browser.save_screenshot(str(path))
    from matplotlib.image import imread

    assert imread(path).std() > 0.05
