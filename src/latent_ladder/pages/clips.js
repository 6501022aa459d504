"use strict";
(() => {
  const $$ = (s) => [...document.querySelectorAll(s)];
  const videos = $$("video.clip");
  const button = document.getElementById("play");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const play = (on) => {
    button.setAttribute("aria-pressed", on);
    button.textContent = on ? "Pause all" : "Play all";
    for (const video of videos) {
      if (on) { video.currentTime = 0; video.play().catch(() => {}); } else video.pause();
    }
  };
  let playing = !still && videos.length <= 32;
  button.hidden = !videos.length;
  button.addEventListener("click", () => play(playing = !playing));
  for (const video of videos) {
    video.addEventListener("click", () => { if (!video.controls) video.paused ? video.play().catch(() => {}) : video.pause(); });
  }
  play(playing);

  const cards = document.querySelector(".cards");
  document.getElementById("order").addEventListener("change", (e) => {
    const name = e.target.value;
    const value = (card) => { const v = parseFloat(card.dataset[name]); return isNaN(v) ? -Infinity : v; };
    const up = name === "number" ? 1 : -1;
    cards.append(...$$(".card").sort((a, b) => up * (value(a) - value(b)) || a.dataset.number - b.dataset.number));
    if (playing) play(true);
  });

  for (const copy of $$("[data-copy]")) {
    copy.addEventListener("click", async () => {
      const code = copy.previousElementSibling;
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }
})();
