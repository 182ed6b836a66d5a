"use strict";
(() => {
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const NAMES = {
  base: "The base model",
  prompt: "The base, examples in its prompt",
  raw: "Adapted, as it states",
  scaled: "Adapted, at its temperature",
};
const MOST = 8;
let task = null, question = null, token = "";

const percent = p => p < 0.0005 && p > 0 ? "<0.1 %" : (100 * p).toFixed(1) + " %";
const share = r => Math.round(100 * r) + " %";
const element = (tag, text, kind) => {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  if (kind) found.className = kind;
  return found;
};
const bar = p => {
  const track = element("div", undefined, "track"), filled = element("div", undefined, "filled");
  filled.style.width = `${100 * p}%`;
  track.append(filled);
  return track;
};

function drawSystem(name, p, order) {
  const table = element("table", undefined, name), best = p.indexOf(Math.max(...p));
  const none = name === "scaled" && !task.temperature ? " (none was learned)" : "";
  table.append(element("caption", NAMES[name] + none));
  const body = element("tbody");
  for (const k of order.slice(0, MOST)) {
    const row = element("tr"), head = element("th", question.choices[k]), cell = element("td");
    head.scope = "row";
    if (k === best) row.classList.add("best");
    if (k === question.answer) row.classList.add("right");
    cell.append(bar(p[k]));
    row.append(head, cell, element("td", percent(p[k])));
    body.append(row);
  }
  if (order.length > MOST) {
    const row = element("tr"), rest = order.slice(MOST).reduce((sum, k) => sum + p[k], 0), cell = element("td");
    cell.append(bar(Math.min(1, rest)));
    row.append(element("th", `${order.length - MOST} others`), cell, element("td", percent(rest)));
    body.append(row);
  }
  table.append(body);
  return table;
}

function draw() {
  $("answer").hidden = !question || !question.bars;
  if (question && question.bars) {
    const scaled = question.bars.scaled;
    const order = scaled.map((_, k) => k).sort((a, b) => scaled[b] - scaled[a] || a - b);
    const shown = order.length > MOST ? order : scaled.map((_, k) => k);
    $("text").textContent = question.text;
    const notes = [];
    if (question.seen) notes.push("The task was adapted to this very row: its answer proves nothing.");
    if (question.answer !== null) notes.push("✓ marks the right answer.");
    if (!question.bars.prompt) notes.push("No labelled rows are known here that could stand in the base's prompt.");
    $("note").textContent = notes.join(" ");
    $("systems").replaceChildren(...Object.keys(NAMES).filter(n => question.bars[n]).map(n => drawSystem(n, question.bars[n], shown)));
  }
  drawPromise();
}

function drawPromise() {
  const found = task && task.slider[$("risk").value - 1], words = [];
  if (!found) return;
  $("share").textContent = share(found.risk);
  $("risk").setAttribute("aria-valuetext", share(found.risk));
  if (!found.promised) {
    $("verdict").textContent = found.has < found.needs
      ? `Nothing can be promised at ${share(found.risk)}: that needs ${found.needs} labelled rows held back from adapting, or more; here are ${found.has}.`
      : `Nothing can be promised at ${share(found.risk)}: the ${found.has} rows held back do not show so few errors anywhere.`;
    return;
  }
  const from = found.threshold === null ? "every row is answered" : `rows are answered from a confidence of ${percent(found.threshold)}`;
  words.push(`With at most ${share(found.risk)} errors among the answers, at 90 % confidence, ${from}.`);
  words.push(`Of the ${found.has} rows held back ${found.answered} were, ${found.errors} of them wrong.`);
  const rows = task.questions.filter(q => q.bars);
  const answers = q => found.threshold === null || Math.max(...q.bars.scaled) >= found.threshold;
  if (rows.length > 1) words.push(`Of the ${rows.length} questions on this page ${rows.filter(answers).length} would be.`);
  $("verdict").textContent = words.join(" ");
  if (question && question.bars) {
    const yes = answers(question);
    $("verdict").append(" ", element("span", yes ? "This question: answered." : "This question: not answered.", yes ? "answered" : "silent"));
  }
}

function drawCost() {
  const words = [], seconds = task.seconds || {}, names = {base: "the base", prompt: "with examples in the prompt", adapted: "adapted"};
  if (task.steps) words.push(`Adapted once, to ${task.examples} rows in ${task.steps} steps.`);
  const spent = Object.keys(names).filter(n => seconds[n] !== undefined).map(n => `${names[n]} ${seconds[n].toPrecision(2)} s`);
  if (spent.length) words.push(`A question takes: ${spent.join(", ")} (on the machine that made this page).`);
  if (task.temperature) words.push(`Temperature ${task.temperature.toFixed(2)}.`);
  $("cost").textContent = words.join(" ");
}

function choose(number) {
  task = data.tasks[number];
  task.questions = task.questions || [];
  const labels = task.labels ? ` Answers: ${task.labels.join(", ")}.` : "";
  $("about").textContent = `Task ${task.name}. ${task.stem || ""}${labels} ${task.verdict || ""}`;
  $("pick").replaceChildren(...task.questions.map((q, i) => {
    const option = element("option", `${i + 1}. ${q.text.replace(/\s+/g, " ").slice(0, 90)}`);
    option.value = String(i);
    return option;
  }));
  $("picking").hidden = !task.questions.length;
  $("typing").hidden = !data.live;
  $("choosing").hidden = Boolean(task.labels);
  $("promise").hidden = !task.slider;
  if (task.slider) {
    $("risk").min = "1";
    $("risk").max = String(task.slider.length);
    $("risk").step = "1";
    const first = task.slider.findIndex(s => s.promised);
    $("risk").value = String(first < 0 ? 10 : first + 1);
  }
  question = null;
  drawCost();
  if (task.questions.length) pick(0); else draw();
}

function pick(number) {
  const last = task.questions.length - 1;
  number = Math.min(last, Math.max(0, number));
  $("pick").value = String(number);
  $("back").setAttribute("aria-disabled", String(number === 0));
  $("on").setAttribute("aria-disabled", String(number === last));
  question = task.questions[number];
  draw();
  if (!question.bars) ask(question.row, question);
}

async function call(path, body) {
  const headers = {"Content-Type": "application/json"};
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, body ? {method: "POST", headers, body: JSON.stringify(body)} : {headers});
  const found = await answer.json();
  if (answer.status === 401) $("entry").hidden = false;
  if (!answer.ok) throw new Error(found.error ? found.error.message : `HTTP ${answer.status}`);
  $("entry").hidden = true;
  return found;
}

async function ask(row, into) {
  $("said").textContent = "Asking …";
  try {
    const found = await call("v1/bars", {model: task.name, row});
    if (into) Object.assign(into, found, {answer: into.answer, seen: into.seen});
    question = into || found;
    $("said").textContent = "";
    draw();
  } catch (error) {
    $("said").textContent = String(error.message || error);
  }
}

async function begin() {
  if (data.live && !data.tasks.length) {
    $("said").textContent = "Loading …";
    try {
      data.tasks = (await call("v1/page")).tasks;
      $("said").textContent = "";
    } catch (error) {
      $("said").textContent = token ? String(error.message || error) : "This server asks for a token.";
      return;
    }
  }
  $("tasks").hidden = data.tasks.length < 2;
  $("task").replaceChildren(...data.tasks.map((t, i) => {
    const option = element("option", t.name);
    option.value = String(i);
    return option;
  }));
  choose(0);
}

$("task").addEventListener("change", () => choose(Number($("task").value)));
$("pick").addEventListener("change", () => pick(Number($("pick").value)));
$("back").addEventListener("click", () => pick(Number($("pick").value) - 1));
$("on").addEventListener("click", () => pick(Number($("pick").value) + 1));
$("risk").addEventListener("input", drawPromise);
$("entry").addEventListener("submit", event => {
  event.preventDefault();
  token = $("token").value.trim();
  begin();
});
$("typing").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("typed").value, choices = $("choices").value.split("\n").map(c => c.trim()).filter(Boolean);
  ask(task.labels ? {[task.column]: text} : {question: text, choices}, null);
});
begin();
})();
