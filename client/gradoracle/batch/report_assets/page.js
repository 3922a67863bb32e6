// The data of the page, how figures are spelled, and how elements are made. Texts of cases go into text nodes and
// attributes only, never through a parser of HTML.

const NAMESPACE = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(NAMESPACE, tag), attributes, children);

// ---- Figures. What JSON cannot say comes as the strings "NaN", "Infinity" and "-Infinity".

const UNSAYABLE = { NaN: "NaN", Infinity: "∞", "-Infinity": "−∞" };

function figure(value, digits = 2) {
  if (typeof value !== "number") return value === null || value === undefined ? "" : UNSAYABLE[value] ?? String(value);
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-4 && size < 1e5)) return String(Number(value.toPrecision(digits)));
  return value.toExponential(digits - 1).replace("e+", "e");
}

function element(value) {
  if (!Array.isArray(value)) return figure(value, 10);
  const [real, imaginary] = value.map((part) => figure(part, 10));
  return `${real}${/^[-−]/.test(imaginary) ? "" : "+"}${imaginary}j`;
}

function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 1e-3) return `${figure(value * 1e6, 2)} µs`;
  if (value < 1) return `${figure(value * 1e3, 2)} ms`;
  if (value < 120) return `${figure(value, 3)} s`;
  return value < 7200 ? `${figure(value / 60, 3)} min` : `${figure(value / 3600, 3)} h`;
}

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const words = (name) => name.replaceAll("_", " ");
const heading = (name) => words(name).charAt(0).toUpperCase() + words(name).slice(1);
const toNumber = (value) => (typeof value === "number" ? value : Number(value));

// ---- Data. Details and drawings stay text until somebody wants them.

const SUMMARY = JSON.parse(document.getElementById("summary-data").textContent);
const CASES = [];
const DRAWINGS = [];

for (const line of document.getElementById("cases").textContent.split("\n")) {
  if (line[0] === "g") DRAWINGS.push(line);
  if (line[0] !== "c") continue;
  const tab = line.indexOf("\t");
  const [id, number, outcome, labels, diagnosis, ratio, time, message] = JSON.parse(line.slice(1, tab));
  CASES.push({ id, number, outcome, labels, diagnosis, ratio, time, message, text: line.slice(tab + 1) });
}

const RANK = Object.fromEntries(SUMMARY.order.map((outcome, place) => [outcome, place]));

function found(one) {
  one.haystack ??= [one.id, one.outcome, one.diagnosis, one.message, ...Object.values(one.labels)]
    .join("\n").toLowerCase();
  return one.haystack;
}

const details = (one) => (one.text ? JSON.parse(one.text) : null);
const drawing = (number) => (number === undefined ? null : JSON.parse(DRAWINGS[number].slice(1)));

// ---- What is shown, kept in the address behind the #, so that every view is a link.

const STATE = { verdicts: new Set(), q: "", diagnosis: "", labels: {}, sort: "verdict", page: 1, open: new Set() };

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  STATE.verdicts = new Set((given.get("verdict") ?? "").split(",").filter((name) => name in RANK));
  STATE.q = given.get("q") ?? "";
  STATE.diagnosis = given.get("diagnosis") ?? "";
  STATE.sort = given.get("sort") ?? "verdict";
  STATE.page = Math.max(1, Number.parseInt(given.get("page") ?? "1", 10) || 1);
  STATE.open = new Set(given.getAll("case"));
  STATE.labels = {};
  for (const [name, value] of given) if (name.startsWith("label.")) STATE.labels[name.slice(6)] = value;
}

function writeState() {
  const given = new URLSearchParams();
  if (STATE.verdicts.size) given.set("verdict", [...STATE.verdicts].join(","));
  if (STATE.q) given.set("q", STATE.q);
  if (STATE.diagnosis) given.set("diagnosis", STATE.diagnosis);
  for (const [name, value] of Object.entries(STATE.labels)) if (value) given.set(`label.${name}`, value);
  if (STATE.sort !== "verdict") given.set("sort", STATE.sort);
  if (STATE.page > 1) given.set("page", STATE.page);
  if (STATE.open.size === 1) given.set("case", [...STATE.open][0]);
  history.replaceState(null, "", `#${given}`);
}
