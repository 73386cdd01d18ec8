// Renews the page every ten seconds, as long as somebody can see it and has not paused it, and gives each command a button
// that copies it. Without this script the pages are the same, and stand still; a click marks a command to copy.
"use strict";
(() => {
  const EVERY_MS = 10000;
  const button = document.getElementById("pause");
  let paused = false;

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

  async function renew() {
    const isTyped = [...document.querySelectorAll("main form input")].some((input) => input.value !== input.defaultValue);
    if (paused || document.hidden || isTyped || document.querySelector("main form:focus-within, main [type=password]")) return;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = mark(document.activeElement);
      const opened = [...document.querySelectorAll("details")].map((d) => d.open);
      const scrolled = [...document.querySelectorAll(".scroll")].map((s) => [s.scrollLeft, s.scrollTop]);
      document.querySelector("main").replaceChildren(...fresh.querySelector("main").childNodes);
      document.getElementById("freshness").replaceChildren(...fresh.getElementById("freshness").childNodes);
      offerCopies();
      document.body.classList.remove("stale");
      document.querySelectorAll("details").forEach((d, n) => { d.open = opened[n] || false; });
      document.querySelectorAll(".scroll").forEach((s, n) => { if (scrolled[n]) [s.scrollLeft, s.scrollTop] = scrolled[n]; });
      if (focused) document.querySelector(focused)?.focus({ preventScroll: true });
    } catch {
      document.body.classList.add("stale"); // old numbers must not look like new ones
    }
  }
  setInterval(renew, EVERY_MS);
  document.addEventListener("visibilitychange", renew);
})();
