"use strict";
(() => {
  const $ = (s) => document.querySelector(s);
  $("#width")?.addEventListener("input", (e) => {
    $(".cards").style.setProperty("--card-w", `${e.target.value}px`);
    window.dispatchEvent(new Event("resize"));
  });
  $("#theme")?.addEventListener("change", (e) => {
    if (e.target.value) document.documentElement.dataset.theme = e.target.value;
    else delete document.documentElement.dataset.theme;
  });
})();
