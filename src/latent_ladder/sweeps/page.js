"use strict";
(() => {
  const $ = (s, root = document) => root.querySelector(s);
  const $$ = (s, root = document) => [...root.querySelectorAll(s)];
  const cards = $$(".card[data-point]").filter((c) => $(".stage", c));
  const draft = cards.find((c) => c.dataset.draft !== undefined);
  let frame = Math.floor(($$(".frames button").length - 1) / 2);
  let zoom = Number($(".zoom button[aria-pressed=true]")?.dataset.zoom || 4);
  let pinned = false, at = [0.5, 0.5], showDraft = false, playing = false;

  const source = (card) => {
    const from = showDraft && draft ? draft : card;
    const shown = $$(".strip img", from);
    return shown[Math.min(frame, shown.length - 1)];
  };
  const lens = () => {
    for (const card of cards) {
      const stage = $(".stage", card), glass = $(".lens", card), image = source(card);
      if (!image.naturalWidth) continue;
      const scale = zoom / (window.devicePixelRatio || 1);
      const w = image.naturalWidth * scale, h = image.naturalHeight * scale;
      const size = glass.offsetWidth || 100;
      glass.style.left = `${at[0] * 100}%`;
      glass.style.top = `${at[1] * 100}%`;
      glass.style.backgroundSize = `${w}px ${h}px`;
      glass.style.backgroundPosition = `${size / 2 - at[0] * w}px ${size / 2 - at[1] * h}px`;
      if (glass.dataset.of !== image.id + showDraft) {
        glass.style.backgroundImage = `url("${image.src}")`;
        glass.dataset.of = image.id + showDraft;
      }
      stage.setAttribute("aria-label", `frame, zoom at ${Math.round(at[0] * 100)} % across, ${Math.round(at[1] * 100)} % down`);
    }
  };
  const show = () => {
    for (const card of cards) {
      $(".stage > img", card).src = source(card).src;
      $$(".strip button", card).forEach((b, i) => b.setAttribute("aria-pressed", i === frame));
    }
    $$(".frames button").forEach((b, i) => b.setAttribute("aria-pressed", i === frame));
    lens();
  };
  const zooming = (on) => { document.body.classList.toggle("zooming", on); if (on) lens(); };

  for (const card of cards) {
    const stage = $(".stage", card);
    const move = (e) => {
      const box = stage.getBoundingClientRect();
      at = [(e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height].map((v) => Math.min(1, Math.max(0, v)));
      zooming(true);
    };
    stage.addEventListener("pointermove", move);
    stage.addEventListener("pointerleave", () => { if (!pinned) zooming(false); });
    stage.addEventListener("click", (e) => { pinned = !pinned; move(e); });
    stage.addEventListener("focus", () => { if (stage.matches(":focus-visible")) zooming(true); });
    stage.addEventListener("blur", () => { if (!pinned) zooming(false); });
    stage.addEventListener("keydown", (e) => {
      const step = e.shiftKey ? 0.1 : 0.02;
      const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (ways[e.key]) {
        at = at.map((v, i) => Math.min(1, Math.max(0, v + ways[e.key][i])));
      } else if (e.key === "Enter") pinned = !pinned;
      else if (e.key === "Escape") { pinned = false; zooming(false); return; }
      else return;
      e.preventDefault();
      zooming(true);
    });
    $$(".strip button", card).forEach((b, i) => b.addEventListener("click", () => { frame = i; show(); }));
  }
  $$(".frames button").forEach((b, i) => b.addEventListener("click", () => { frame = i; show(); }));
  $$(".zoom button").forEach((b) => b.addEventListener("click", () => {
    zoom = Number(b.dataset.zoom);
    $$(".zoom button").forEach((o) => o.setAttribute("aria-pressed", o === b));
    pinned = true;
    zooming(true);
  }));
  const play = $("#play");
  play?.addEventListener("click", () => {
    playing = !playing;
    play.setAttribute("aria-pressed", playing);
    play.textContent = playing ? "Pause" : "Play all";
    for (const video of $$(".stage video")) {
      video.hidden = !playing;
      if (playing) { video.currentTime = 0; video.play().catch(() => {}); } else video.pause();
    }
  });
  const hold = $("#hold");
  const holding = (on) => { if (on !== showDraft) { showDraft = on; hold.setAttribute("aria-pressed", on); show(); } };
  if (hold) {
    hold.addEventListener("pointerdown", () => holding(true));
    for (const end of ["pointerup", "pointerleave", "blur"]) hold.addEventListener(end, () => holding(false));
    hold.addEventListener("keydown", (e) => { if (e.key === " " || e.key === "Enter") { e.preventDefault(); holding(true); } });
    hold.addEventListener("keyup", () => holding(false));
  }

  const linked = $$("[data-point]");
  for (const one of linked) {
    const light = (on) => linked.forEach((o) => { if (o.dataset.point === one.dataset.point) o.classList.toggle("on", on); });
    one.addEventListener("pointerenter", () => light(true));
    one.addEventListener("pointerleave", () => light(false));
  }

  const body = $("#points tbody");
  $$("#points th button").forEach((button) => button.addEventListener("click", () => {
    const th = button.parentElement, column = th.cellIndex;
    const up = th.getAttribute("aria-sort") === "descending" || (!th.hasAttribute("aria-sort") && th.classList.contains("text"));
    $$("#points th").forEach((o) => o.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return x === y ? 0 : x === "" ? 1 : -1;
      const found = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return up ? found : -found;
    };
    body.append(...[...body.rows].sort(order));
  }));
  window.addEventListener("resize", lens);
  document.body.classList.add("js");
  if (cards.length) show();
})();
