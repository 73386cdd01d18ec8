// Renews the page every ten seconds, as long as somebody can see it and has not paused it, and gives each command a button
// that copies it. Without this script the pages are the same, and stand still; a click marks a command to copy.
"use strict";
(() => {
  const EVERY_MS = 10000;
  const IN_USE_MS = 60000; // how long a page that is in use passes for a new one
  const button = document.getElementById("pause");
  let paused = false;
  let renewedAt = Date.now();

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Go on updating" : "Pause updates";
  });

  async function copy(command, button) {
    let copied = false;
    try {
      await navigator.clipboard.writeText(command.textContent);
      copied = true;
    } catch { // the clipboard is there on https and localhost only
      getSelection().selectAllChildren(command);
      copied = document.execCommand("copy");
    }
    button.textContent = copied ? "copied" : "press Ctrl-C";
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  }

  function offerCopies() {
    for (const command of document.querySelectorAll("main .command")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "copy";
      button.setAttribute("aria-label", `Copy ${command.textContent}`);
      button.addEventListener("click", () => copy(command, button));
      command.after(button);
    }
  }
  offerCopies();

  // What somebody has focused or opened stays so, when it is still there.
  const mark = (element) => element && element !== document.body &&
    (element.id ? `#${CSS.escape(element.id)}` : element.getAttribute("href") && `a[href="${CSS.escape(element.getAttribute("href"))}"]`);

  // A page that changes under somebody's hands is worse than one that is some seconds older.
  function isInUse() {
    const isTyped = [...document.querySelectorAll("main form input")].some((input) => input.value !== input.defaultValue);
    const marked = getSelection();
    return isTyped || document.querySelector("main form:focus-within, main [type=password]") !== null ||
      (!marked.isCollapsed && document.querySelector("main").contains(marked.anchorNode));
  }

  const labelOf = (region) => region.getAttribute("aria-label").replace(/[\d,]/g, ""); // the number of its rows may change

  async function renew() {
    if (paused || document.hidden) return;
    if (isInUse()) {
      if (Date.now() - renewedAt > IN_USE_MS) document.body.classList.add("held");
      return;
    }
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (paused || isInUse()) return; // the answer may have taken seconds
      const focused = mark(document.activeElement);
      const opened = new Set([...document.querySelectorAll("details[open]")].map((d) => d.id));
      const scrolled = new Map([...document.querySelectorAll(".scroll")].map((s) => [labelOf(s), [s.scrollLeft, s.scrollTop]]));
      document.querySelector("main").replaceChildren(...fresh.querySelector("main").childNodes);
      document.getElementById("freshness").replaceChildren(...fresh.getElementById("freshness").childNodes);
      offerCopies();
      document.body.classList.remove("stale", "held");
      renewedAt = Date.now();
      document.querySelectorAll("details").forEach((d) => { d.open = opened.has(d.id); });
      document.querySelectorAll(".scroll").forEach((s) => { [s.scrollLeft, s.scrollTop] = scrolled.get(labelOf(s)) || [0, 0]; });
      if (focused) document.querySelector(focused)?.focus({ preventScroll: true });
    } catch {
      document.body.classList.add("stale"); // old numbers must not look like new ones
    }
  }
  setInterval(renew, EVERY_MS);
  document.addEventListener("visibilitychange", renew);
})();
