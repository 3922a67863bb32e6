// Everything that is known of one case.

const badge = (outcome) => el("span", { class: `badge ${outcome}` }, words(outcome));

function table(heads, rows) {
  const head = heads.map(([text, isNumber]) => el("th", { scope: "col", class: isNumber ? "number" : null }, text));
  const body = rows.map((row) =>
    el("tr", {}, row.map((cell, place) => el("td", { class: heads[place][1] ? "number mono" : null }, cell))));
  return el("div", { class: "wrap" }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

function diagnosisOf(one) {
  if (one.diagnosis) return words(one.diagnosis) + (one.factor === undefined ? "" : ` by ${figure(one.factor, 9)}`);
  if (one.claim_inside === undefined) return "";
  return one.claim_inside ? "between the slopes" : "outside the slopes";
}

function inputs(known) {
  const rows = Object.entries(known.inputs ?? {}).map(([name, one]) => [
    el("code", {}, name), badge(one.verdict), diagnosisOf(one), figure(one.max_error), figure(one.error_bound),
    one.kink ? `${figure(one.kink[0], 6)} … ${figure(one.kink[1], 6)}` : "", one.explanation,
  ]);
  if (!rows.length) return null;
  const heads = [["input"], ["verdict"], ["diagnosis"], ["error", true], ["bound", true], ["slopes", true], [""]];
  const kinks = rows.some((row) => row[5]);
  if (!kinks) for (const row of [heads, ...rows]) row.splice(5, 1);
  return el("div", {}, el("h3", {}, "Inputs"), table(heads, rows));
}

// Where an element is; of a Jacobian's, which output's derivative it is, too.
function placeOf(row) {
  const index = row.index.length ? `[${row.index.join(", ")}]` : "scalar";
  if (!row.output) return index;
  return `d ${row.output}${row.output_index?.length ? `[${row.output_index.join(", ")}]` : ""} / d ${index}`;
}

function worst(known) {
  const heads = [["index"], ["claimed", true], ["autograd", true], ["numerical", true], ["error", true], ["bound", true]];
  return Object.entries(known.inputs ?? {}).filter(([, one]) => one.worst?.length).map(([name, one]) =>
    el("div", {}, el("h3", {}, "Worst elements of ", el("code", {}, name)),
      table(heads, one.worst.map((row) => [
        el("code", {}, placeOf(row)),
        element(row.claimed), element(row.reference), element(row.numerical), figure(row.error), figure(row.error_bound),
      ]))));
}

function opinions(known) {
  const all = known.opinions ?? [];
  if (!all.length) return null;
  const bad = all.filter((one) => one.verdict !== "PASS");
  const heads = [["identity"], ["verdict"], ["error", true], ["bound", true], [""]];
  const rows = (some) => table(heads, some.map((one) =>
    [words(one.name), badge(one.verdict), figure(one.error), figure(one.error_bound), one.explanation]));
  const good = all.length - bad.length;
  return el("div", {}, el("h3", {}, "Second opinions"), bad.length ? rows(bad) : null,
    good ? el("details", {}, el("summary", {}, `${count(good, "identity holds", "identities hold")}`),
      rows(all.filter((one) => one.verdict === "PASS"))) : null);
}

function fault(error) {
  if (!error) return null;
  const facts = [["reason", error.reason], ["node", error.node], ["field", error.field], ["line", error.line]]
    .filter(([, value]) => value !== undefined).map(([name, value]) => el("span", {}, `${name} `, el("b", {}, value)));
  return el("div", {}, el("h3", {}, error.type), el("pre", {}, error.message), el("p", { class: "facts" }, facts));
}

const GROUPS = ["outputs", "gradients", "tangents", "jacobian", "hessian", "products"];
const LONGEST = 400;

function shownData(data) {
  const text = data === undefined ? "" : JSON.stringify(data);
  return el("code", {}, text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text);
}

function tensors(known) {
  const rows = [];
  const add = (group, name, one) => {
    if (one === null) rows.push([group, el("code", {}, name), "None: independent", "", "", ""]);
    else if (typeof one.dtype === "string") rows.push([
      group, el("code", {}, name), one.shape.join(" × ") || "scalar", one.dtype, figure(one.norm, 6), shownData(one.data)]);
    else for (const [inner, tensor] of Object.entries(one)) add(group, `${name}, ${inner}`, tensor);
  };
  for (const group of GROUPS) for (const [name, one] of Object.entries(known[group] ?? {})) add(group, name, one);
  if (!rows.length) return null;
  return el("div", {}, el("h3", {}, "Tensors"),
    table([["group"], ["name"], ["shape"], ["dtype"], ["norm", true], ["elements"]], rows));
}

function values(known) {
  if (!known.values) return null;
  return el("details", {}, el("summary", {}, "Values"), el("pre", {}, JSON.stringify(known.values, null, 2)));
}

function facts(one, known) {
  const told = [["line", one.number], ...Object.entries(one.labels)];
  if (known?.evaluations !== undefined) told.push(["forward passes", known.evaluations]);
  if (known?.detection_power) told.push(["smallest fault caught in an element of usual size", figure(known.detection_power)]);
  const phases = Object.entries(known?.timing ?? {}).filter(([name, value]) => name !== "total" && value >= 1e-4);
  if (one.time !== null) {
    const parts = phases.length > 1 ? ` (${phases.map(([name, value]) => `${name} ${seconds(value)}`).join(", ")})` : "";
    told.push(["server time", `${seconds(one.time)}${parts}`]);
  }
  return el("p", { class: "facts" }, told.map(([name, value]) => el("span", {}, `${name} `, el("b", {}, String(value)))),
    el("a", { href: `#${new URLSearchParams({ case: one.id })}` }, "link to this case"));
}

function drawings(known) {
  const maps = Object.entries(known.inputs ?? {}).filter(([, input]) => input.errors)
    .map(([name, input]) => heatMap(name, input.errors, input.error_bound));
  const all = [...worst(known), known.ladder ? curve(known.ladder) : null, ...maps, graph(known.drawing, known.error?.node)];
  return all.some(Boolean) ? el("div", { class: "drawings" }, all) : null;
}

function whole(one) {
  const known = details(one);
  if (!known) return el("div", { class: "details" }, facts(one, known), el("p", {}, one.message),
    el("p", { class: "quiet" }, "The details were left out to keep this page small; the results file has them."));
  const program = known.expression ?? known.graph_file;
  return el("div", { class: "details" }, facts(one, known), fault(known.error),
    program ? el("pre", {}, program) : null, inputs(known), drawings(known), opinions(known),
    tensors(known), values(known),
    known.is_brief ? el("p", { class: "quiet" },
      "Curve, heat map and graph were left out to keep this page small; the results file has the figures.") : null);
}
