// The upload page: files can be dropped, are checked before they are sent, and the card shows as it will look.
"use strict";

const form = document.getElementById("upload");
const input = form.querySelector("input[type=file]");
const drop = document.getElementById("drop");
const list = document.getElementById("chosen");
const checks = document.getElementById("checks");
const TEXT = /\.(json|md|ya?ml|txt)$/i;
const TEXT_LIMIT = 1 << 20;
const HEADER_LIMIT = 8 << 20;

function line(parent, ...parts) {
  const item = document.createElement("li");
  for (const [tag, text, className] of parts) {
    const part = document.createElement(tag);
    part.textContent = text;
    if (className) part.className = className;
    item.append(part, " ");
  }
  parent.append(item);
}

function size(bytes) {
  for (const [unit, factor] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= factor) return `${(bytes / factor).toFixed(1)} ${unit}`;
  }
  return `${bytes} B`;
}

// What the hub needs to check a file before it has it: texts, and the headers of safetensors files.
async function describe(file) {
  const described = { path: file.name, size: file.size };
  if (TEXT.test(file.name) && file.size <= TEXT_LIMIT) described.content = await file.text();
  if (file.name.endsWith(".safetensors") && file.size > 8) {
    const view = new DataView(await file.slice(0, 8).arrayBuffer());
    const length = Number(view.getBigUint64(0, true));
    if (length <= HEADER_LIMIT) described.header = await file.slice(8, 8 + length).text();
  }
  return described;
}

async function check() {
  const files = await Promise.all([...input.files].map(describe));
  const card = form.elements.card.value;
  if (card.trim()) {
    const others = files.filter((file) => file.path !== "README.md");
    files.splice(0, files.length, ...others, { path: "README.md", size: new Blob([card]).size, content: card });
  }
  if (!files.length) return;
  const answer = await fetch("/api/v1/check", {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": form.elements.csrf.value },
    body: JSON.stringify({ repo: `${form.elements.namespace.value}/${form.elements.name.value || "new"}`, files }),
  });
  const found = await answer.json();
  checks.replaceChildren();
  const rows = answer.ok ? found.checks : [{ level: "error", id: "check", message: found.error, fix: "" }];
  const colours = { ok: "good", warning: "warn", error: "bad" };
  for (const row of rows.filter((one) => one.level !== "ok")) {
    line(checks, ["span", row.level, `chip ${colours[row.level]}`], ["b", row.id], ["p", row.message], ["p", row.fix || "", "muted"]);
  }
  if (!checks.children.length) line(checks, ["span", "ok", "chip good"], ["b", `${rows.length} checks pass`]);
  checks.closest("section").hidden = false;
}

async function chosen() {
  list.replaceChildren();
  for (const file of input.files) line(list, ["code", file.name], ["span", size(file.size), "muted"]);
  const readme = [...input.files].find((file) => file.name === "README.md");
  if (readme && !form.elements.card.value.trim()) form.elements.card.value = await readme.text();
  await check();
}

let waiting;
function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(check, 500);
}

input.addEventListener("change", chosen);
form.elements.card.addEventListener("input", soon);
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  input.files = event.dataTransfer.files;
  chosen();
});
