"use strict";
// Everything that comes out of a model or a corpus goes through textContent, never through innerHTML.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const PAGE = 100;
const PRESETS = [["wrong", "right"], ["right", "wrong"], ["any", "any"]];
let shown = [];
let outcomeFilters = [];
let current;
let started = false;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function option(select, value, text) {
  const made = element("option", text);
  made.value = value;
  select.append(made);
}

function currentView() {
  return data.views[at("view").value];
}

function ownText(view, question) {
  const parts = [question.id, question.question, ...question.answers, question.rationale || ""];
  if (view.kind === "test") {
    for (const run of Object.values(question.runs)) parts.push(run.pred || "");
  }
  return parts.join("\n").toLowerCase();
}

function passageText(view, question) {
  const ids = view.kind === "test"
    ? Object.values(question.runs).flatMap((run) => run.ranking.map(([id]) => id))
    : question.passages.map((passage) => passage.id);
  return [...new Set(ids)].map((id) => view.passages[id]).join("\n").toLowerCase();
}

function matches(view, question, words) {
  question.own ??= ownText(view, question);
  if (at("deep").checked) question.deep ??= passageText(view, question);
  const text = at("deep").checked ? question.own + question.deep : question.own;
  if (!words.every((word) => text.includes(word))) return false;
  return outcomeFilters.every(({ run, verdict }) => {
    if (verdict.value === "any") return true;
    return outcome(question, run.value) === (verdict.value === "right");
  });
}

// Whether the answer is right; where nobody answered, whether the first passage has an answer; null where neither is known.
function outcome(question, name) {
  const run = question.runs[name];
  if (!run || run.right !== null || !run.ranking.length) return run ? run.right : null;
  return question.relevant.includes(run.ranking[0][0]);
}

function outcomeFilter(answered, start) {
  const run = element("select");
  const verdict = element("select");
  for (const [name, words] of answered) option(run, name, words);
  run.selectedIndex = Math.min(start, answered.length - 1);
  for (const value of ["any", "right", "wrong"]) option(verdict, value, value);
  for (const select of [run, verdict]) select.addEventListener("change", update);
  run.setAttribute("aria-label", "condition");
  verdict.setAttribute("aria-label", "its answer, or else its first passage");
  const both = element("span");
  both.append(run, " ", verdict);
  at("outcomes").append(both);
  return { run, verdict };
}

function setView() {
  const view = currentView();
  at("outcomes").replaceChildren();
  const answered = Object.entries(view.kind === "test" ? view.runs : {}).filter(
    ([run]) => view.questions.some((question) => outcome(question, run) !== null));
  // Two of them find the questions on which two conditions differ.
  outcomeFilters = answered.length ? [0, 1].map((start) => outcomeFilter(answered, start)) : [];
  at("presets").replaceChildren();
  for (const verdicts of view.pair?.length && outcomeFilters.length ? PRESETS : []) {
    const words = verdicts[0] === "any" ? "all" : `base ${verdicts[0]}, RADIO ${verdicts[1]}`;
    const button = element("button", words);
    button.addEventListener("click", () => preset(verdicts, button));
    at("presets").append(button);
  }
  update();
}

function preset(verdicts, button) {
  outcomeFilters.forEach(({ run, verdict }, i) => {
    run.value = currentView().pair[i];
    verdict.value = verdicts[i];
  });
  update();
  button.setAttribute("aria-pressed", "true");
}

function nextPreset() {
  const buttons = [...at("presets").children];
  const pressed = buttons.findIndex((button) => button.getAttribute("aria-pressed") === "true");
  buttons[(pressed + 1) % buttons.length]?.click();
}

function update() {
  const view = currentView();
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = view.questions.filter((question) => matches(view, question, words));
  for (const button of at("presets").children) button.removeAttribute("aria-pressed");
  at("count").textContent = `${shown.length} of ${view.questions.length} questions`;
  at("list").replaceChildren();
  more(0);
  if (started) history.replaceState(null, "", shown.length ? address(shown[0]) : "#explorer");
  if (shown.length) open(shown[0]);
  else at("detail").replaceChildren(element("p", "No question matches."));
}

function more(start) {
  for (const question of shown.slice(start, start + PAGE)) {
    const item = element("li");
    const button = element("button", question.question);
    button.addEventListener("click", () => choose(question));
    question.button = button;
    item.append(button);
    at("list").append(item);
  }
  if (shown.length > start + PAGE) {
    const item = element("li");
    const button = element("button", `${shown.length - start - PAGE} more`);
    button.id = "more";
    button.addEventListener("click", () => { item.remove(); more(start + PAGE); });
    item.append(button);
    at("list").append(item);
  }
}

function address(question) {
  return `#${new URLSearchParams({ view: currentView().name, question: question.id })}`;
}

// Open a question because the user wants it: the address names it from now on.
function choose(question) {
  while (!question.button?.isConnected) at("more").click();
  open(question);
  question.button.scrollIntoView({ block: "nearest" });
  history.replaceState(null, "", address(question));
}

function step(by) {
  const next = shown[shown.indexOf(current) + by];
  if (next) choose(next);
}

// Go to the question that the address names, if it names one of this page.
function follow() {
  const named = new URLSearchParams(location.hash.slice(1));
  const number = data.views.findIndex((view) => view.name === named.get("view"));
  const question = data.views[number]?.questions.find(({ id }) => id === named.get("question"));
  if (!question) return;
  at("search").value = "";
  at("view").value = number;
  setView();
  choose(question);
  at("explorer").scrollIntoView();
}

function open(question) {
  current = question;
  for (const button of at("list").querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
  if (question.button) question.button.setAttribute("aria-current", "true");
  const detail = at("detail");
  const title = element("h3", `${question.question} `);
  const link = element("a", "link");
  link.href = address(question);
  title.append(link);
  detail.replaceChildren(title);
  detail.append(element("p", `Gold answers: ${[...new Set(question.answers)].join(" | ")}`));
  detail.append(...(currentView().kind === "test" ? testDetail(question) : trainingDetail(question)));
  detail.scrollTop = 0;
}

function table(heads, rows) {
  const made = element("table");
  const head = made.createTHead().insertRow();
  for (const text of heads) {
    const cell = element("th", text, text === "passage" || text === "condition" || text === "answer" ? "text" : "");
    cell.scope = "col";
    head.append(cell);
  }
  const body = made.createTBody();
  for (const { cells, className } of rows) {
    const row = body.insertRow();
    if (className) row.className = className;
    for (const cell of cells) {
      const place = row.insertCell();
      if (cell instanceof Node) { place.append(cell); place.className = "text"; } else { place.textContent = cell; }
    }
  }
  const wide = element("div", undefined, "wide");
  wide.append(made);
  return wide;
}

function passage(id) {
  const [title, ...rest] = currentView().passages[id].split("\n");
  const made = element("details");
  made.append(element("summary", title || id), element("p", rest.join("\n")), element("small", `id ${id}`));
  return made;
}

function testDetail(question) {
  const runs = Object.entries(currentView().runs).filter(([run]) => question.runs[run]);
  const parts = [];
  const answered = runs.filter(([run]) => question.runs[run].pred !== null);
  if (answered.length) {
    parts.push(element("h4", "Answers"));
    parts.push(table(["condition", "answer", "F1"], answered.map(([run, name]) => {
      const { pred, right, f1 } = question.runs[run];
      const verdict = element("span", `${right ? "\u2713" : "\u2717"} ${pred}`, right ? "right" : "wrong");
      return { cells: [element("span", name), verdict, f1 === null ? "" : f1.toFixed(2)] };
    })));
  }
  const ranked = runs.filter(([run]) => question.runs[run].ranking.length);
  if (ranked.length) {
    const relevant = new Set(question.relevant);
    const places = ranked.map(([run]) => new Map(question.runs[run].ranking.map(([id, score], i) => [id, [i + 1, score]])));
    parts.push(element("h4", "Passages: rank (score) by condition; marked ones contain an answer"));
    parts.push(table(["passage", ...ranked.map(([, name]) => name)], question.runs[ranked[0][0]].ranking.map(([id]) => ({
      className: relevant.has(id) ? "answer" : "",
      cells: [passage(id), ...places.map((place) => place.has(id) ? `${place.get(id)[0]} (${place.get(id)[1]})` : "")],
    }))));
  }
  return parts;
}

function trainingDetail(question) {
  const heads = ["passage", "fused rank", "fused", "rationale rank", "rationale", "retrieval rank", "retrieval", "role"];
  return [
    element("h4", "Rationale"), element("p", question.rationale),
    element("h4", "Passages by fused score; marked ones contain an answer"),
    table(heads, question.passages.map((p) => ({
      className: p.answer ? "answer" : "",
      cells: [passage(p.id), p.ranks[2], p.fused, p.ranks[1], p.rationale, p.ranks[0], p.retrieval, p.role],
    }))),
  ];
}

data.views.forEach((view, i) => option(at("view"), i, view.name));
at("view").addEventListener("change", setView);
at("search").addEventListener("input", update);
at("deep").addEventListener("change", update);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const act = { j: () => step(1), ArrowRight: () => step(1), k: () => step(-1), ArrowLeft: () => step(-1),
    f: nextPreset, "/": () => at("search").focus() }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
window.addEventListener("hashchange", follow);
if (data.views.length) setView();
else at("detail").append(element("p", "No finished run to explore."));
follow();
started = true;
