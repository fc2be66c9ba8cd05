// The map: a point for an image, near those that look alike to the model. Dragged, pinched, or moved by keys.

function drawMap(section) {
  const { images, x, y } = run.map;
  const canvas = element("canvas", { tabindex: 0, role: "application", "aria-label": "Map of the images. Arrow keys go from point to point, Enter opens one, plus and minus zoom." });
  const label = element("p", { class: "preview", "aria-live": "polite" }, "Point at a point, or tap it");
  const zoom = (text, by, name) => element("button", { type: "button", "aria-label": name, onclick: () => scale(by, 0.5, 0.5) }, text);
  const buttons = element("div", { class: "zoom" }, zoom("+", 1.5, "zoom in"), zoom("−", 1 / 1.5, "zoom out"), zoom("whole", 0, "whole map"));
  const colours = element("select", { "aria-label": "colours", onchange: () => draw() }, element("option", { value: "" }, "coloured by cluster"));
  if (run.labels) colours.append(element("option", { value: "class" }, "coloured by class"));
  const key = element("ul", { class: "key" });
  section.append(element("div", { class: "map" }, canvas, buttons, label), ...(run.labels ? [colours] : []), key);

  const view = { scale: 1, left: 0, top: 0 }; // the part of the unit square that is seen: 1 / scale wide
  let chosen = -1; // a point
  let lit = null; // a group that alone has its colour

  const group = (point) => (colours.value ? run.labels[images[point]] : clusterOf(images[point]));
  const colour = (each) => (each < 0 ? "#999" : `hsl(${(each * 137.508) % 360} ${each % 2 ? 65 : 75}% ${38 + 10 * (each % 3)}%)`);
  const place = (point) => [
    ((x[point] / 1000 - view.left) * view.scale * 0.96 + 0.02) * canvas.width,
    ((y[point] / 1000 - view.top) * view.scale * 0.96 + 0.02) * canvas.height,
  ];

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const pen = canvas.getContext("2d");
    const radius = ratio * Math.min(7, Math.max(2.5, 90 / Math.sqrt(images.length)) * Math.sqrt(view.scale));
    const dot = (point, size) => {
      const [left, top] = place(point);
      pen.beginPath();
      pen.arc(left, top, size, 0, 2 * Math.PI);
      pen.fill();
    };
    const ofLit = (point) => lit === null || group(point) === lit;
    pen.fillStyle = "#d5d8dc";
    images.forEach((_, point) => ofLit(point) || dot(point, radius));
    images.forEach((_, point) => {
      if (!ofLit(point)) return;
      pen.fillStyle = colour(group(point));
      dot(point, radius);
    });
    if (chosen >= 0) {
      pen.fillStyle = colour(group(chosen));
      pen.strokeStyle = "#111";
      pen.lineWidth = 2 * ratio;
      dot(chosen, 1.8 * radius);
      pen.stroke();
    }
  }

  function explain() {
    const groups = [...new Set(images.map((_, point) => group(point)))].sort((one, other) => one - other);
    const entries = groups.map((each) => {
      const chip = element("span", { class: "chip" });
      chip.style.background = colour(each);
      const name = colours.value ? run.classes[each] ?? "no label" : titleOf(each);
      const light = () => ((lit = lit === each ? null : each), draw(), explain());
      return element("li", {}, element("button", { type: "button", "aria-pressed": String(lit === each), onclick: light }, chip, element("bdi", {}, name)));
    });
    key.replaceChildren(...entries);
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    const ratio = canvas.width / box.width;
    const [left, top] = [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
    let best = -1;
    let least = (18 * ratio) ** 2;
    images.forEach((_, point) => {
      const [pointLeft, pointTop] = place(point);
      const distance = (pointLeft - left) ** 2 + (pointTop - top) ** 2;
      if (distance < least) [best, least] = [point, distance];
    });
    return best;
  }

  function choose(point) {
    if (point === chosen) return;
    chosen = point;
    draw();
    if (point < 0) return;
    label.classList.toggle("right", place(point)[0] < canvas.width / 2); // not on the point
    label.replaceChildren(thumbnail(images[point]), element("bdi", {}, describe(images[point])));
  }

  function scale(by, left, top) {
    const before = view.scale;
    view.scale = by ? Math.min(60, Math.max(1, view.scale * by)) : 1;
    const kept = (start, at) => Math.min(1 - 1 / view.scale, Math.max(0, start + at / before - at / view.scale));
    [view.left, view.top] = [kept(view.left, left), kept(view.top, top)];
    draw();
  }

  function shift(left, top) {
    const kept = (start, by) => Math.min(1 - 1 / view.scale, Math.max(0, start + by / view.scale));
    [view.left, view.top] = [kept(view.left, left), kept(view.top, top)];
    draw();
  }

  // One finger or the mouse points and drags, two fingers pinch.
  const fingers = new Map();
  let moved = false;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
    moved = fingers.size > 1;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return choose(nearest(event));
    const box = canvas.getBoundingClientRect();
    if (fingers.size === 2) {
      const [other] = [...fingers.values()].filter((each) => each.pointerId !== event.pointerId);
      const length = (each) => Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY);
      const middle = (one, two, start, size) => ((one + two) / 2 - start) / size;
      scale(length(event) / Math.max(1, length(before)), middle(event.clientX, other.clientX, box.left, box.width), middle(event.clientY, other.clientY, box.top, box.height));
    } else if (moved || Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY) > 5) {
      moved = true;
      shift((before.clientX - event.clientX) / box.width, (before.clientY - event.clientY) / box.height);
    } else return;
    fingers.set(event.pointerId, event);
  });
  const lift = (event) => {
    if (!fingers.delete(event.pointerId) || moved || event.type !== "pointerup") return;
    const point = nearest(event);
    const open = point >= 0 && (event.pointerType === "mouse" || point === chosen); // a first tap shows it
    choose(point);
    if (open) show([images[point]], 0);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    scale(event.deltaY < 0 ? 1.2 : 1 / 1.2, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });

  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) choose(towards(way));
    else if (event.key === "Enter" && chosen >= 0) show([images[chosen]], 0);
    else if (event.key === "+" || event.key === "=") scale(1.5, 0.5, 0.5);
    else if (event.key === "-") scale(1 / 1.5, 0.5, 0.5);
    else return;
    event.preventDefault();
  });

  // The nearest point in a direction.
  function towards([right, down]) {
    if (chosen < 0) return 0;
    const [left, top] = place(chosen);
    let [best, least] = [chosen, Infinity];
    images.forEach((_, point) => {
      const [dx, dy] = [place(point)[0] - left, place(point)[1] - top];
      const [along, across] = [dx * right + dy * down, Math.abs(dx * down) + Math.abs(dy * right)];
      if (along > 0 && across <= 2 * along && along + 2 * across < least) [best, least] = [point, along + 2 * across];
    });
    return best;
  }

  colours.addEventListener("change", () => ((lit = null), explain()));
  document.addEventListener("names", () => (draw(), explain()));
  new ResizeObserver(draw).observe(canvas);
  draw();
  explain();
}
