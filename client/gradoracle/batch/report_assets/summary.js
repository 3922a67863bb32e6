// The run at a glance.

function told() {
  const { outcomes, cases } = SUMMARY;
  const undecided = outcomes.INCONCLUSIVE + outcomes.NON_DIFFERENTIABLE + outcomes.NON_DETERMINISTIC;
  const parts = [];
  if (outcomes.FAIL) parts.push(count(outcomes.FAIL, "wrong gradient"));
  if (outcomes.ERROR) parts.push(`${count(outcomes.ERROR, "case")} without a result`);
  if (undecided) parts.push(`${count(undecided, "case")} without a verdict`);
  const all = cases ? `All ${count(cases, "case is", "cases are")} good` : "No cases";
  const text = parts.length ? `${parts.join(", ")}, of ${count(cases, "case")}` : all;
  const worst = SUMMARY.order.find((name) => outcomes[name]) ?? "OK";
  return el("div", { class: `card told ${worst}` }, el("strong", {}, text), leftOut());
}

function leftOut() {
  const { rows, details, brief } = SUMMARY.left_out;
  const parts = [];
  if (brief) parts.push(`curves, heat maps and graphs of ${count(brief, "case")}`);
  if (details) parts.push(`the details of ${count(details, "case")}`);
  if (rows) parts.push(`the lines of ${count(rows, "case")}, which are counted only`);
  if (!parts.length) return null;
  return el("p", { class: "quiet", id: "left-out" },
    `To keep this page small it leaves out ${parts.join(", ")}. The results file has them.`);
}

function bar(outcomes) {
  const parts = SUMMARY.order.filter((name) => outcomes[name]);
  const bar = el("div", { class: "bar", "aria-hidden": "true" });
  for (const name of parts) {
    const part = el("span", { class: name, title: `${words(name)}: ${outcomes[name]}` });
    part.style.flexGrow = outcomes[name];
    bar.append(part);
  }
  return bar;
}

function chips() {
  return el("div", { class: "chips", role: "group", "aria-label": "Verdicts that are shown" },
    SUMMARY.order.filter((name) => SUMMARY.outcomes[name]).map((name) =>
      el("button", { type: "button", class: `chip ${name}`, "data-outcome": name, click: () => toggle(name) },
        words(name), el("b", {}, SUMMARY.outcomes[name].toLocaleString("en")))));
}

function toggle(name) {
  if (!STATE.verdicts.delete(name)) STATE.verdicts.add(name);
  changed();
}

function operators() {
  const bad = (counts) => counts.cases - (counts.PASS ?? 0) - (counts.OK ?? 0);
  const all = Object.entries(SUMMARY.operators)
    .sort(([one, a], [other, b]) => bad(b) - bad(a) || b.cases - a.cases || one.localeCompare(other));
  const known = new Set(CASES.flatMap((one) => one.labels.operator ?? []));
  const rows = all.slice(0, 300).map(([name, counts]) => el("tr", {},
    el("td", {}, known.has(name)
      ? el("button", { type: "button", class: "mono", click: () => { STATE.labels = { operator: name }; changed(); } }, name)
      : el("span", { class: "mono" }, name)),
    el("td", { class: "number" }, `${bad(counts)} of ${counts.cases}`), el("td", {}, bar(counts))));
  const listed = SUMMARY.listed; // "operator", "method", or both
  const title = `By ${listed}`;
  return el("div", { class: "card", id: "groups" }, el("h2", {}, title),
    el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": title },
      el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, heading(listed)),
        el("th", { scope: "col", class: "number" }, "Not good"), el("th", { scope: "col" }, "Verdicts"))), el("tbody", {}, rows)),
      all.length > rows.length ? el("p", { class: "quiet" }, `and ${all.length - rows.length} more`) : null));
}

function slowest() {
  if (!SUMMARY.slowest.length) return null;
  return el("div", { class: "card" }, el("h2", {}, "Slowest"), el("div", { class: "scroll" }, el("table", {}, el("tbody", {},
    SUMMARY.slowest.map((one) => el("tr", {},
      el("td", {}, el("button", { type: "button", click: () => show(one.id) }, one.id)),
      el("td", { class: "number" }, seconds(one.seconds))))))));
}

function times() {
  const { total, median, p95, max, phases } = SUMMARY.seconds;
  if (median === undefined) return null;
  const spent = Object.entries(phases).sort(([, a], [, b]) => b - a).filter(([, value]) => value >= total * 0.005);
  const pairs = [["in all", total], ["median case", median], ["95 of 100 within", p95], ["slowest", max]]
    .map(([name, value]) => [el("dt", {}, name), el("dd", {}, seconds(value))]);
  const shares = spent.map(([name, value]) => [el("dt", {}, name), el("dd", {}, `${figure((100 * value) / total, 2)} %`)]);
  return el("div", { class: "card" }, el("h2", {}, "Time of the server"), el("dl", {}, pairs, shares));
}

document.getElementById("summary").append(
  told(), el("div", {}, bar(SUMMARY.outcomes), chips()), el("section", { class: "cards" }, operators(), slowest(), times()));
