// The flame graph's script: reads the numbers in the document, draws them, zooms, searches.
// Names come from anywhere: they only ever become text of an element, never markup.
(function () {
  "use strict";

  const ROW = 18, NARROWEST = 0.7; // pixels
  const CUT = 10, PROCESS = 9, KERNEL = 8, OTHER = 7; // colours, as in flamegraph_data.py
  const data = JSON.parse(document.getElementById("profile").textContent);
  const count = data.depth.length;
  const all = data.total[0] || 1;

  // Where each node begins, who calls it, and the number behind its last callee.
  const start = new Float64Array(count), parent = new Int32Array(count), end = new Int32Array(count);
  (function () {
    const path = [], next = [];
    for (let n = 0; n < count; n++) {
      const depth = data.depth[n];
      while (path.length > depth) end[path.pop()] = n;
      parent[n] = depth ? path[depth - 1] : -1;
      start[n] = next[depth] || 0;
      next[depth] = start[n] + data.total[n];
      next[depth + 1] = start[n];
      path.push(n);
    }
    while (path.length) end[path.pop()] = count;
  })();

  const name = (n) => data.functions[data.function[n]][0];
  const short = (n) => data.functions[data.function[n]][4] || name(n);
  const file = (n) => data.files[data.functions[data.function[n]][1]];
  const colour = (n) => data.functions[data.function[n]][2];
  const inlined = (n) => data.functions[data.function[n]][3];

  let zoomed = 0, current = 0, flipped = false, wanted = null, shown = [];

  // Words and numbers.

  const percent = (part, whole) => {
    if (!whole) return "-";
    const share = (100 * part) / whole;
    if (part && share < 0.01) return "<0.01%";
    return (part !== whole && share > 99.99 ? ">99.99" : share.toFixed(2)) + "%";
  };
  const SIZES = {
    nanoseconds: [["s", 1e9], ["ms", 1e6], ["us", 1e3], ["ns", 1]],
    bytes: [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]],
  };
  const amount = (weight) => {
    for (const [unit, size] of SIZES[data.unit] || []) {
      if (weight >= size) return Number((weight / size).toPrecision(3)) + " " + unit;
    }
    return grouped(weight) + " " + (data.unit === "samples" && weight === 1 ? "sample" : data.unit);
  };
  const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");
  const samples = (number) => grouped(number) + (number === 1 ? " sample" : " samples");

  function facts(n) {
    const lines = [];
    const total = data.total[n], own = data.own[n];
    const caller = parent[n] < 0 ? "" : ", " + percent(total, data.total[parent[n]]) + " of its caller";
    lines.push(percent(total, all) + " of all" + caller);
    const counted = data.unit === "samples" ? "" : " in " + samples(data.count[n]);
    lines.push(amount(total) + counted + (own ? ", of it " + amount(own) + " itself" : ""));
    if (data.guessed[n]) {
      const ways = Object.entries(data.guessed[n]);
      const sure = ways.reduce((left, [, weight]) => left - weight, total);
      if (sure > 0) ways.push(["cfi", sure]);
      ways.sort((a, b) => b[1] - a[1]);
      lines.push("found by " + ways.map(([how, weight]) => how + " " + percent(weight, total)).join(", "));
    } else if (file(n)) {
      lines.push(own === total ? "where samples were taken" : "found by cfi");
    }
    if (data.base) {
      const before = data.base[n];
      const change = before ? ((100 * (total - before)) / before).toFixed(1) : null;
      const told = change === null ? "new" : (total >= before ? "+" : "") + change + "%";
      lines.push("before: " + percent(before, all) + " of all, " + told);
    }
    return lines;
  }

  const kind = (n) => {
    const words = [];
    if (colour(n) === KERNEL) words.push("kernel");
    if (inlined(n)) words.push("inlined");
    return [file(n), ...words].filter(Boolean).join(", ");
  };

  // The page.

  const make = (tag, kind, ...inside) => {
    const element = document.createElementNS("http://www.w3.org/1999/xhtml", tag);
    if (kind) element.className = kind;
    element.append(...inside);
    return element;
  };

  const search = make("input");
  search.type = "search";
  search.placeholder = "Search ( / )";
  search.setAttribute("aria-label", "Search for functions or files");
  const found = make("span", "found");
  found.setAttribute("role", "status");
  const reset = make("button", "", "Zoom out");
  const flip = make("button", "", "Flip");
  flip.title = "Root at the top or at the bottom (i)";
  reset.title = "Back to the whole picture (Esc)";
  const stage = make("div", "stage");
  const rows = make("div", "rows", stage);
  rows.tabIndex = 0;
  rows.setAttribute("role", "group");
  rows.setAttribute("aria-label", "Flame graph: arrow keys move, Enter zooms in, Escape out");
  const tip = make("div", "tip");
  tip.hidden = true;
  const foot = make("div", "foot");
  foot.setAttribute("aria-live", "polite");
  const about = [samples(data.count[0])];
  if (data.unit !== "samples") about.push(amount(data.total[0]));
  about.push(percent(data.complete, data.count[0]) + " with a complete stack");
  if (data.base) about.push(percent(data.gone, 1) + " of the base lies in other stacks");
  if (data.leftOut) about.push(grouped(data.leftOut) + " frames too small to be drawn");
  const page = make(
    "div", "page",
    make(
      "div", "head",
      make("h1", "", data.title),
      make("span", "note", about.join(" · ")),
      make("span", "tools", found, search, flip, reset)
    ),
    legend(), rows, foot, tip
  );

  function legend() {
    const entries = [];
    const entry = (kind, text) => entries.push(make("span", "", make("span", "swatch " + kind), text));
    const own = new Map(); // by colour, of what is complete
    let cut = 0;
    for (let n = 0; n < count; n++) {
      if (data.depth[n] === 1 && colour(n) === CUT) cut += data.total[n];
      own.set(colour(n), (own.get(colour(n)) || 0) + data.own[n]);
    }
    if (data.base) {
      const steps = { dm3: "much less", dm1: "less", dp0: "the same", dp1: "more", dp3: "much more", dp4: "new" };
      for (const step in steps) entry(step, steps[step]);
    } else {
      const names = data.files.slice(0, OTHER).map((path) => path.split("/").pop() || path);
      names[OTHER] = "other code";
      names[KERNEL] = "kernel";
      for (let n = 0; n <= KERNEL; n++) {
        const share = own.get(n);
        if (share) entry("c" + n, names[n] + " " + percent(share, all));
      }
    }
    if (cut) entry("c" + CUT, "truncated stacks " + percent(cut, all));
    return make("div", "legend", ...entries);
  }

  // Drawing: what is wide enough and in sight becomes an element, anything else is passed over.

  function classes(n) {
    if (colour(n) === CUT || !data.base) {
      return "frame c" + colour(n) + " s" + (data.function[n] % 5);
    }
    const now = data.total[n], before = data.base[n];
    const step = Math.round((4 * (now - before)) / (Math.max(now, before) || 1));
    return "frame d" + (step < 0 ? "m" : "p") + Math.abs(step);
  }

  function deepest() {
    let depth = 0;
    const least = (data.total[zoomed] * NARROWEST) / width();
    for (let n = zoomed; n < end[zoomed]; n++) {
      if (data.total[n] < least) n = end[n] - 1;
      else depth = Math.max(depth, data.depth[n]);
    }
    return depth;
  }

  const width = () => Math.max(rows.clientWidth, 1);
  let depths = 0;

  const top = (depth) => (flipped ? depth : depths - depth) * ROW;

  function place(n, x, wide, extra) {
    const element = make("div", classes(n) + extra, wide > 24 ? short(n) : "");
    if (wide <= 24) element.classList.add("thin");
    element.style.left = x + "px";
    element.style.width = Math.max(wide - 1, 0.5) + "px";
    element.style.top = top(data.depth[n]) + "px";
    element.dataset.node = n;
    shown.push(n);
    return element;
  }

  function draw() {
    const scale = width() / (data.total[zoomed] || 1);
    const from = rows.scrollTop - 10 * ROW, to = rows.scrollTop + rows.clientHeight + 10 * ROW;
    const elements = [];
    const inSight = (n) => top(data.depth[n]) >= from && top(data.depth[n]) <= to;
    shown = [];
    for (let n = parent[zoomed]; n >= 0; n = parent[n]) {
      if (inSight(n)) elements.push(place(n, 0, width(), " above" + marks(n)));
    }
    for (let n = zoomed; n < end[zoomed]; n++) {
      const wide = data.total[n] * scale;
      if (wide < NARROWEST && n !== zoomed) n = end[n] - 1;
      else if (inSight(n)) elements.push(place(n, (start[n] - start[zoomed]) * scale, wide, marks(n)));
    }
    stage.replaceChildren(...elements);
  }

  const isCurrent = (n) => n === current && (n !== zoomed || document.activeElement === rows);

  function marks(n) {
    let marks = isCurrent(n) ? " current" : "";
    if (wanted) marks += wanted[data.function[n]] ? " match" : " dim";
    return marks;
  }

  function layout() {
    depths = deepest();
    stage.style.height = (depths + 1) * ROW + "px";
    reset.disabled = zoomed === 0;
    const y = top(data.depth[zoomed]);
    rows.scrollTop = flipped ? Math.max(y - 4 * ROW, 0) : y - rows.clientHeight + 5 * ROW;
    draw();
  }

  function zoom(n) {
    zoomed = n;
    select(n);
    layout();
  }

  function select(n) {
    current = n;
    foot.replaceChildren(name(n) + " — " + [kind(n), ...facts(n)].filter(Boolean).join(" · "));
  }

  // Search: what matches counts once, with all that it calls.

  function look() {
    const text = search.value.trim();
    wanted = null;
    found.textContent = "";
    if (text) {
      const fits = matcher(text);
      wanted = data.functions.map((f) => fits(f[0]) || (f[1] >= 0 && fits(data.files[f[1]])));
      let sum = 0;
      for (let n = 0; n < count; n++) {
        if (wanted[data.function[n]]) {
          sum += data.total[n];
          n = end[n] - 1;
        }
      }
      found.textContent = percent(sum, all) + " found";
    }
    draw();
  }

  function matcher(text) {
    if (text.length > 2 && text.startsWith("/") && text.endsWith("/")) {
      try {
        const pattern = new RegExp(text.slice(1, -1), "i");
        return (name) => pattern.test(name);
      } catch (error) {
        return () => false;
      }
    }
    text = text.toLowerCase();
    return (name) => name.toLowerCase().includes(text);
  }

  function nextMatch(step) {
    if (!wanted) return;
    for (let k = 1; k <= count; k++) {
      const n = (current + step * k + count * 2) % count;
      if (wanted[data.function[n]]) {
        // Where it cannot be seen, its nearest caller that has room for it is zoomed to.
        if (n < zoomed || n >= end[zoomed] || data.total[n] * width() < 3 * data.total[zoomed]) {
          zoomed = parent[n] < 0 ? 0 : parent[n];
        }
        select(n);
        layout();
        reveal(n);
        return;
      }
    }
  }

  function reveal(n) {
    const y = top(data.depth[n]);
    if (y < rows.scrollTop) rows.scrollTop = y - 2 * ROW;
    if (y > rows.scrollTop + rows.clientHeight - ROW) rows.scrollTop = y - rows.clientHeight + 3 * ROW;
    draw();
  }

  // Mouse and keys.

  const nodeOf = (event) => {
    const frame = event.target.closest ? event.target.closest(".frame") : null;
    return frame ? Number(frame.dataset.node) : -1;
  };

  rows.addEventListener("mousemove", (event) => {
    const n = nodeOf(event);
    tip.hidden = n < 0;
    if (n < 0) return;
    const lines = [make("b", "", name(n).length > 400 ? name(n).slice(0, 400) + "…" : name(n))];
    if (kind(n)) lines.push(make("div", "note", kind(n)));
    for (const line of facts(n)) lines.push(make("div", "", line));
    if (colour(n) === CUT) lines.push(make("div", "cut", "of a truncated stack: its callers are not known"));
    tip.replaceChildren(...lines);
    const box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const below = event.clientY + 18 + box.height < innerHeight;
    tip.style.left = Math.max(x, 4) + "px";
    tip.style.top = Math.max(below ? event.clientY + 18 : event.clientY - box.height - 12, 4) + "px";
  });
  rows.addEventListener("mouseleave", () => { tip.hidden = true; });
  rows.addEventListener("click", (event) => {
    const n = nodeOf(event);
    if (n >= 0) zoom(n);
  });
  let waiting = false;
  rows.addEventListener("scroll", () => {
    tip.hidden = true;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  });
  // Not drawn anew: a press gives focus, and there is no click on what has gone when it ends.
  function point() {
    for (const element of stage.children) {
      element.classList.toggle("current", isCurrent(Number(element.dataset.node)));
    }
  }
  rows.addEventListener("focus", point);
  rows.addEventListener("blur", point);
  addEventListener("resize", layout);

  function sideways(step) {
    const seen = shown.filter((n) => data.depth[n] === data.depth[current]).sort((a, b) => a - b);
    const at = seen.indexOf(current) + step;
    return at >= 0 && at < seen.length ? seen[at] : current;
  }

  function inwards() {
    let best = current;
    for (let n = current + 1; n < end[current]; n = end[n]) {
      if (best === current || data.total[n] > data.total[best]) best = n;
    }
    return best;
  }

  const outwards = () => (parent[current] < 0 ? current : parent[current]);

  rows.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const moves = {
      ArrowUp: flipped ? outwards : inwards,
      ArrowDown: flipped ? inwards : outwards,
      ArrowLeft: () => sideways(-1),
      ArrowRight: () => sideways(1),
      Home: () => 0,
    };
    if (event.key in moves) {
      select(moves[event.key]());
      if (current < zoomed || current >= end[zoomed]) { zoomed = current; layout(); }
      reveal(current);
    } else if (event.key === "Enter" || event.key === " ") {
      zoom(current);
    } else {
      return;
    }
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") {
      if (search.value) { search.value = ""; look(); }
      else zoom(0);
      rows.focus();
    } else if (event.target === search) {
      if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1);
      return;
    } else if (event.key === "/") {
      search.focus();
    } else if (event.key === "i") {
      turn();
    } else if (event.key === "n" || event.key === "N") {
      nextMatch(event.key === "n" ? 1 : -1);
    } else {
      return;
    }
    event.preventDefault();
  });
  search.addEventListener("input", look);
  reset.addEventListener("click", () => zoom(0));
  function turn() {
    flipped = !flipped;
    stage.classList.toggle("flipped", flipped);
    layout();
  }
  flip.addEventListener("click", turn);

  // In an SVG file the page takes the place of the static picture.
  const home = document.getElementById("flamegraph");
  const svg = "http://www.w3.org/2000/svg";
  if (home.namespaceURI === svg) {
    for (const side of ["width", "height"]) home.setAttribute(side, "100%");
    home.removeAttribute("viewBox");
    document.getElementById("static").remove();
    const frame = document.createElementNS(svg, "foreignObject");
    for (const side of ["width", "height"]) frame.setAttribute(side, "100%");
    frame.append(page);
    home.append(frame);
  } else {
    home.append(page);
  }
  foot.append("Click or Enter zooms in, Escape out; arrow keys move; / searches, n finds the next; i flips.");
  layout();
})();
