// Makes pages that work without it a little quicker to use.
"use strict";

const root = document.documentElement;
root.classList.add("js");

function toggleTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const next = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  root.dataset.theme = next;
  document.cookie = `theme=${next}; path=/; max-age=31536000; samesite=lax`;
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  const text = source.value ?? source.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  button.classList.add("done");
  document.getElementById("announce").textContent = "Copied to the clipboard";
  setTimeout(() => {
    button.textContent = "Copy";
    button.classList.remove("done");
  }, 2000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.id === "theme") toggleTheme();
  if (button?.dataset.copy) copy(button);
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const search = document.querySelector("[data-search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  }
  if (event.key === "Escape") {
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  }
});

// Leave what is not filled in out of addresses.
document.addEventListener("htmx:configRequest", ({ detail }) => {
  for (const [key, value] of [...detail.formData.entries()]) {
    if (value === "") detail.formData.delete(key);
  }
});

// On narrow screens the facets begin closed.
if (matchMedia("(max-width: 48rem)").matches) {
  for (const facets of document.querySelectorAll("details.facets")) facets.open = false;
}

for (const select of document.querySelectorAll("select[data-go]")) {
  select.addEventListener("change", () => location.assign(select.value));
}
