// The list of cases: filters, order, pages; a case opens below its line.

const PAGE = 100;
const MOST_CHOICES = 1000;
const list = document.getElementById("list");

const value = (ratio) => (ratio === null ? -1 : ratio === "Infinity" ? Number.POSITIVE_INFINITY : toNumber(ratio));
const byNumber = (a, b) => a.number - b.number;
const ORDERS = {
  verdict: ["Worst first", (a, b) => RANK[a.outcome] - RANK[b.outcome] || byNumber(a, b)],
  line: ["As in the file", byNumber],
  error: ["Farthest above the bound", (a, b) => (value(b.ratio) > value(a.ratio)) - (value(b.ratio) < value(a.ratio)) || byNumber(a, b)],
  time: ["Slowest first", (a, b) => (b.time ?? -1) - (a.time ?? -1) || byNumber(a, b)],
  id: ["By name", (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : byNumber(a, b))],
};

// Labels by name, with the values that they take, those that most cases have first.
function labelNames() {
  const names = new Map();
  for (const one of CASES) for (const [name, value] of Object.entries(one.labels)) {
    const values = names.get(name) ?? names.set(name, new Map()).get(name);
    values.set(value, (values.get(value) ?? 0) + 1);
  }
  const total = (values) => [...values.values()].reduce((a, b) => a + b, 0);
  return [...names].sort(([one, a], [other, b]) =>
    (other === "operator") - (one === "operator") || total(b) - total(a) || b.size - a.size);
}

const LABELS = labelNames();
const COLUMNS = LABELS.filter(([name, values]) => name !== "method" && (name === "operator" || values.size > 1))
  .map(([name]) => name).sort((a, b) => (b === "operator") - (a === "operator") || (b === "dtype") - (a === "dtype")).slice(0, 2);

// ---- Filters

function choice(name, label, values, current, change) {
  const options = values.map(([value, text]) => el("option", { value, selected: value === current }, text));
  return el("label", {}, label, el("select", { name, change: (event) => change(event.target.value) }, options));
}

function controls() {
  const search = el("input", { type: "search", name: "q", placeholder: "id, operator, diagnosis, message …", autocomplete: "off",
    input: (event) => { STATE.q = event.target.value; changed(); } });
  const diagnoses = [...new Set(CASES.map((one) => one.diagnosis.split(" ")[0]).filter(Boolean))].sort();
  const fields = [
    el("label", { class: "wide" }, "Search", search),
    diagnoses.length > 1 ? choice("diagnosis", "Diagnosis", [["", "all"], ...diagnoses.map((one) => [one, words(one)])], "",
      (value) => { STATE.diagnosis = value; changed(); }) : null,
    LABELS.filter(([, values]) => values.size > 1 && values.size <= MOST_CHOICES).slice(0, 5).map(([name, values]) =>
      choice(`label.${name}`, heading(name), [["", "all"], ...[...values].sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([text, number]) => [text, `${text} (${number})`])], "", (value) => { STATE.labels[name] = value; changed(); })),
    choice("sort", "Order", Object.entries(ORDERS).map(([name, [text]]) => [name, text]), "",
      (value) => { STATE.sort = value; changed(); }),
    el("button", { type: "button", class: "button", id: "reset", click: reset }, "Reset"),
  ];
  document.getElementById("filters").append(el("div", { class: "fields" }, fields));
}

function reset() {
  Object.assign(STATE, { verdicts: new Set(), q: "", diagnosis: "", labels: {}, sort: "verdict", open: new Set() });
  changed();
}

function syncControls() {
  for (const field of document.querySelectorAll("#filters input, #filters select")) {
    const wanted = field.name.startsWith("label.") ? STATE.labels[field.name.slice(6)] ?? "" : STATE[field.name];
    if (field.value !== wanted) field.value = wanted;
  }
  for (const chip of document.querySelectorAll(".chip"))
    chip.setAttribute("aria-pressed", String(STATE.verdicts.has(chip.dataset.outcome)));
}

function chosen() {
  const terms = STATE.q.toLowerCase().split(/\s+/).filter(Boolean);
  const labels = Object.entries(STATE.labels).filter(([, value]) => value);
  const kept = CASES.filter((one) =>
    (!STATE.verdicts.size || STATE.verdicts.has(one.outcome))
    && (!STATE.diagnosis || one.diagnosis.split(" ")[0] === STATE.diagnosis)
    && labels.every(([name, value]) => one.labels[name] === value)
    && terms.every((term) => found(one).includes(term)));
  return kept.sort((ORDERS[STATE.sort] ?? ORDERS.verdict)[1]);
}

// ---- Lines

function line(one) {
  const place = `case-${one.number}`;
  const button = el("button", { type: "button", class: "case", "aria-expanded": "false", "aria-controls": place }, one.id);
  const row = el("tr", { class: "row", "data-id": one.id, click: (event) => {
    if (!event.target.closest("a") && !String(getSelection())) toggleCase(one, row);
  } },
    el("td", { class: "verdict" }, badge(one.outcome)),
    el("td", { class: "place" }, button, one.message ? el("div", { class: "message", title: one.message }, one.message) : null),
    COLUMNS.map((name) => el("td", { class: `mono ${name === "operator" ? "operator" : "label"}`, title: one.labels[name] ?? "" },
      one.labels[name] ?? "")),
    el("td", { class: "diagnosis" }, one.outcome === "ERROR" ? "" : words(one.diagnosis)),
    el("td", { class: "number times" }, one.ratio === null ? "" : figure(one.ratio)),
    el("td", { class: "number" }, seconds(one.time)));
  return row;
}

function toggleCase(one, row) {
  if (row.classList.contains("open")) {
    STATE.open.delete(one.id);
    row.nextSibling.remove();
  } else {
    STATE.open.add(one.id);
    open(one, row);
  }
  mark(row);
  writeState();
}

function open(one, row) {
  const columns = row.childElementCount;
  row.after(el("tr", { class: "opened", id: `case-${one.number}` }, el("td", { colspan: columns }, whole(one))));
  mark(row);
}

function mark(row) {
  const isOpen = row.nextSibling?.classList.contains("opened") ?? false;
  row.classList.toggle("open", isOpen);
  row.querySelector(".case").setAttribute("aria-expanded", String(isOpen));
}

function openAll(rows) {
  const all = rows.every(([, row]) => row.classList.contains("open"));
  for (const [one, row] of rows) if (row.classList.contains("open") === all) toggleCase(one, row);
}

// ---- The list

function pager(kept, pages) {
  const go = (page) => { STATE.page = page; render(); list.scrollIntoView(); };
  const button = (text, page) => el("button", { type: "button", class: "button", disabled: page < 1 || page > pages,
    click: () => go(page) }, text);
  return pages < 2 ? null : el("nav", { class: "pages", "aria-label": "Pages" }, button("Previous", STATE.page - 1),
    el("span", {}, `${STATE.page} of ${pages}`), button("Next", STATE.page + 1));
}

function render() {
  const kept = chosen();
  const pages = Math.max(1, Math.ceil(kept.length / PAGE));
  STATE.page = Math.min(STATE.page, pages);
  const shown = kept.slice((STATE.page - 1) * PAGE, STATE.page * PAGE);
  const rows = shown.map((one) => [one, line(one)]);
  const heads = [["Verdict", "verdict"], ["Case", ""], ...COLUMNS.map((name) => [heading(name), name === "operator" ? "operator" : "label"]),
    ["Diagnosis", "diagnosis"], ["× bound", "number times"], ["Time", "number"]];
  const counted = kept.length === CASES.length ? count(kept.length, "case") : `${kept.length.toLocaleString("en")} of ${count(CASES.length, "case")}`;
  const over = () => el("div", { class: "over" }, el("p", { id: "shown", role: "status" }, el("b", {}, counted)), el("div", { class: "pages" },
    rows.length ? el("button", { type: "button", class: "button", id: "open-all", click: () => openAll(rows) }, "Open or close all on this page") : null,
    pager(kept, pages)));
  const under = pages > 1 ? el("div", { class: "over under" }, el("span", {}), pager(kept, pages)) : null;
  list.replaceChildren(over(), el("div", { class: "card cases" }, rows.length
    ? el("table", {}, el("thead", {}, el("tr", {}, heads.map(([text, name]) => el("th", { scope: "col", class: name || null }, text)))),
      el("tbody", {}, rows.map(([, row]) => row)))
    : el("p", { class: "nothing" }, "No case matches these filters.")), under ?? "");
  for (const [one, row] of rows) if (STATE.open.has(one.id)) open(one, row);
  syncControls();
  writeState();
}

function changed() {
  STATE.page = 1;
  render();
}

// Goes to the page that has a case, opens it, and brings it into sight.
function show(id) {
  const one = CASES.find((found) => found.id === id);
  if (!one) return;
  if (!chosen().includes(one)) Object.assign(STATE, { verdicts: new Set(), q: "", diagnosis: "", labels: {} });
  STATE.open = new Set([id]);
  STATE.page = Math.floor(chosen().indexOf(one) / PAGE) + 1;
  render();
  const row = [...list.querySelectorAll("tr.row")].find((found) => found.dataset.id === id);
  row.querySelector(".case").focus({ preventScroll: true });
  row.scrollIntoView({ block: "start" });
  scrollBy(0, -document.getElementById("filters").offsetHeight);
}

function follow() {
  readState();
  if (STATE.open.size === 1) show([...STATE.open][0]);
  else render();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const search = document.querySelector("#filters input");
  if (event.key === "Escape" && event.target === search) { STATE.q = ""; changed(); return; }
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "/") { event.preventDefault(); search.focus(); return; }
  const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  const buttons = [...list.querySelectorAll(".case")];
  const now = buttons.indexOf(document.activeElement);
  if (!step || (now < 0 && event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  buttons[Math.max(0, Math.min(buttons.length - 1, now + step))]?.focus();
}

controls();
follow();
addEventListener("hashchange", follow);
addEventListener("keydown", keys);
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); list.focus(); });
