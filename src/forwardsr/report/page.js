"use strict";
(() => {
  const films = JSON.parse(document.getElementById("films").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // A film's pictures are decoded once, on first use, so that the slider never shows a gap.
  const decoded = {};
  const decode = (run) => (decoded[run] ??= films[run].map((frame) => frame.map((uri) => {
    const image = new Image();
    image.src = uri;
    return image;
  })));

  const markMoment = (run, x) => {
    for (const chart of all(`.chart[data-run="${run}"]`)) {
      const { left, right, min, max } = chart.dataset;
      const at = +left + ((x - min) / (max - min)) * (right - left);
      const line = chart.querySelector(".moment");
      line.setAttribute("transform", `translate(${Math.min(+right, Math.max(+left, at))} 0)`);
      line.classList.add("set");
    }
  };

  for (const player of all(".player")) {
    const slider = player.querySelector("input"), output = player.querySelector("output"), play = player.querySelector(".play");
    const stops = JSON.parse(player.dataset.stops);
    const screens = all(".screen", player).map((screen) => ({
      run: screen.dataset.run, at: JSON.parse(screen.dataset.at), slots: all("img[data-slot]", screen),
    }));
    let timer = null;

    const show = (index) => {
      slider.value = index;
      const stop = stops[index];
      output.textContent = stop.label;
      slider.setAttribute("aria-valuetext", stop.label);
      for (const { run, at, slots } of screens) {
        decode(run);
        slots.forEach((slot, i) => { slot.src = films[run][at[index]][i]; });
      }
      markMoment(player.dataset.marks, stop.x);
    };
    const pause = () => {
      clearInterval(timer);
      timer = null;
      play.firstElementChild.textContent = "▶";
      play.setAttribute("aria-label", "Play");
      play.setAttribute("aria-pressed", "false");
    };
    const step = (by) => show(Math.min(stops.length - 1, Math.max(0, +slider.value + by)));

    play.addEventListener("click", () => {
      if (timer !== null) { pause(); return; }
      if (+slider.value === stops.length - 1) show(0);
      play.firstElementChild.textContent = "❚❚";
      play.setAttribute("aria-label", "Pause");
      play.setAttribute("aria-pressed", "true");
      timer = setInterval(() => { step(1); if (+slider.value === stops.length - 1) pause(); }, 280);
    });
    slider.addEventListener("input", () => { pause(); show(+slider.value); });
    player.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by === undefined || event.target === slider || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      pause();
      step(by);
    });
  }

  const loupe = document.getElementById("loupe"), lenses = loupe.querySelector(".lenses"), caption = loupe.querySelector("p");
  let here = null;
  const look = (wall, column) => {
    here = { wall, column };
    lenses.replaceChildren(...all("img", wall).map((image) => {
      const side = +image.dataset.side, figure = document.createElement("figure"), canvas = document.createElement("canvas");
      canvas.width = canvas.height = side;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Sample ${+wall.dataset.first + column} at ${side} × ${side} pixels`);
      canvas.getContext("2d").drawImage(image, column * image.dataset.pitch, 0, side, side, 0, 0, side, side);
      const text = document.createElement("figcaption");
      text.textContent = `${side} × ${side}`;
      figure.append(canvas, text);
      return figure;
    }));
    caption.textContent = `Sample ${+wall.dataset.first + column}`;
    if (!loupe.open) loupe.showModal();
  };
  const go = (by) => {
    const walls = all(".wall", here.wall.closest(".panels"));
    let wall = walls.indexOf(here.wall), column = here.column + by;
    if (column < 0) { wall = (wall - 1 + walls.length) % walls.length; column = walls[wall].dataset.columns - 1; }
    else if (column >= here.wall.dataset.columns) { wall = (wall + 1) % walls.length; column = 0; }
    look(walls[wall], column);
  };
  for (const wall of all(".wall")) {
    wall.addEventListener("click", (event) => {
      if (event.target.tagName !== "IMG") return;
      const box = event.target.getBoundingClientRect(), columns = +wall.dataset.columns;
      look(wall, Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns)));
    });
  }
  for (const button of all(".closer")) {
    button.addEventListener("click", () => look(button.closest("figure").querySelector(".wall"), 0));
  }
  for (const button of all("[data-go]", loupe)) button.addEventListener("click", () => go(+button.dataset.go));
  loupe.querySelector("[data-close]").addEventListener("click", () => loupe.close());
  loupe.addEventListener("click", (event) => { if (event.target === loupe) loupe.close(); });
  loupe.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by !== undefined) { event.preventDefault(); go(by); }
  });

  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  // A link into a folded run unfolds it.
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = target && target.closest("details");
    if (fold) { fold.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", unfold);
  unfold();
})();
