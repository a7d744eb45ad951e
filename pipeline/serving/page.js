"use strict";
const byId = (id) => document.getElementById(id);
const state = byId("state"), answerBox = byId("answer"), attentionBox = byId("attention");
const labels = [...document.querySelectorAll("label[data-kind]")];
const dropped = new Map();

// Text from a model or a file goes into text nodes only.
function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onerror = () => reject(reader.error);
    reader.onload = () => resolve(String(reader.result).split(",")[1] || "");
    reader.readAsDataURL(file);
  });
}

for (const label of labels.filter((each) => each.dataset.kind === "file")) {
  const input = label.querySelector("input"), text = label.querySelector("span");
  const take = (file) => {
    if (!file) return;
    dropped.set(label.dataset.name, file);
    text.textContent = `${file.name} (${file.size} bytes)`;
    if (document.body.dataset.single === "1") ask();
  };
  input.addEventListener("change", () => take(input.files[0]));
  label.addEventListener("dragover", (event) => {
    event.preventDefault();
    label.classList.add("over");
  });
  label.addEventListener("dragleave", () => label.classList.remove("over"));
  label.addEventListener("drop", (event) => {
    event.preventDefault();
    label.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
}

async function values() {
  const row = {};
  for (const label of labels) {
    const { kind, name } = label.dataset;
    if (kind === "file") {
      if (dropped.has(name)) row[name] = await base64(dropped.get(name));
    } else {
      const text = label.querySelector("textarea, input").value;
      if (kind === "text" || text !== "") row[name] = text;
    }
  }
  return row;
}

async function ask() {
  answerBox.replaceChildren();
  attentionBox.replaceChildren();
  state.className = "";
  state.textContent = "…";
  try {
    const row = await values(), kinds = labels.map((label) => label.dataset.kind);
    const isMedium = document.body.dataset.single === "1" && !kinds.includes("cell");
    if (!Object.keys(row).length) throw new Error("give an input first");
    const body = isMedium ? { inputs: Object.values(row) } : { dataframe_records: [row] };
    if (byId("map").checked) body.params = { attention_map: true };
    const response = await fetch("invocations", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const text = await response.text();
    let found;
    try {
      found = JSON.parse(text);
    } catch {
      throw new Error(`${response.status}: ${text.slice(0, 300)}`);
    }
    if (!response.ok) throw new Error(`${response.status}: ${found.message || text.slice(0, 300)}`);
    show(found.predictions[0]);
    state.textContent = "";
  } catch (error) {
    state.className = "error";
    state.textContent = error.message;
  }
}

const MAX_ROWS = 10;

function show(row) {
  const { source, error, attention, ...answer } = row;
  if (error) {
    element("p", error, answerBox).className = "error";
    return;
  }
  const table = element("table", undefined, answerBox);
  for (const [name, value] of Object.entries(answer)) {
    const line = element("tr", undefined, table);
    element("th", name, line);
    showValue(value, element("td", undefined, line));
  }
  for (const [name, view] of Object.entries(attention || {})) {
    element("h2", `where the model looks: ${name}`, attentionBox);
    showView(view);
  }
}

function showValue(value, box) {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    const sorted = Object.entries(value).sort((a, b) => b[1] - a[1]);
    const table = element("table", undefined, box);
    for (const [name, share] of sorted.slice(0, MAX_ROWS)) {
      const line = element("tr", undefined, table);
      element("td", name, line);
      const meter = element("meter", undefined, element("td", undefined, line));
      meter.value = Number(share);
      element("td", Number(share).toPrecision(4), line);
    }
  } else if (typeof value === "string" && value.startsWith("iVBOR")) {
    picture(value, box);
  } else {
    element("span", typeof value === "string" ? value : JSON.stringify(value), box);
  }
}

function picture(png, box) {
  const image = element("img", undefined, box);
  image.alt = "";
  image.src = `data:image/png;base64,${png}`;
}

function showView(view) {
  if (view.kind === "picture") {
    picture(view.png, attentionBox);
  } else if (view.kind === "curve") {
    const most = Math.max(...view.weights, 1e-12), last = Math.max(1, view.weights.length - 1);
    const points = view.weights.map((w, i) => `${(100 * i) / last},${40 - (38 * w) / most}`);
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 100 40");
    svg.setAttribute("preserveAspectRatio", "none");
    const line = document.createElementNS(space, "polyline");
    const attributes = { points: points.join(" "), fill: "none", stroke: "#4a6fa5" };
    for (const [name, value] of Object.entries(attributes)) line.setAttribute(name, value);
    svg.append(line);
    attentionBox.append(svg);
    element("p", `from 0 to ${view.to} ${view.axis}`, attentionBox);
  } else if (view.kind === "parts") {
    const table = element("table", undefined, attentionBox);
    for (const { part, weight } of view.parts) {
      const line = element("tr", undefined, table);
      element("td", part, line);
      element("td", Number(weight).toPrecision(3), line);
    }
  } else {
    element("p", view.reason, attentionBox);
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
