// Renews the page every ten seconds, as long as somebody can see it and has not paused it. Without this script the pages
// are the same, and stand still.
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

  // What somebody has focused or opened stays so, when it is still there.
  const mark = (element) => element && element !== document.body &&
    (element.id ? `#${CSS.escape(element.id)}` : element.getAttribute("href") && `a[href="${CSS.escape(element.getAttribute("href"))}"]`);

  async function renew() {
    if (paused || document.hidden || document.querySelector("form")) return;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = mark(document.activeElement);
      const opened = [...document.querySelectorAll("details")].map((d) => d.open);
      const scrolled = [...document.querySelectorAll(".scroll")].map((s) => [s.scrollLeft, s.scrollTop]);
      document.querySelector("main").replaceChildren(...fresh.querySelector("main").childNodes);
      document.getElementById("freshness").replaceChildren(...fresh.getElementById("freshness").childNodes);
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
