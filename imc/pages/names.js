"use strict";
// What a person makes of the clusters: names, merged, wrong, moved. Kept by the browser where it keeps anything.

const run = JSON.parse(document.getElementById("run").textContent);
const storedAs = `imc-names ${run.model} ${run.images}`;
const made = { ...structuredClone(run.names), ...kept() };

function kept() {
  try {
    return JSON.parse(localStorage.getItem(storedAs)) || {};
  } catch {
    return {};
  }
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function root(cluster) {
  while (cluster in made.merged) cluster = made.merged[cluster];
  return cluster;
}

function isWrong(cluster) {
  return made.wrong.includes(root(cluster));
}

function titleOf(cluster) {
  const name = made.names[root(cluster)] || `Cluster ${root(cluster)}`;
  return isWrong(cluster) ? `${name} (wrong)` : name;
}

function clusterOf(image) {
  return root(made.moved[image] ?? run.cluster[image]);
}

// The clusters that images may be in, but for those that are merged into others or wrong.
function choices() {
  return run.sizes.map((_, cluster) => cluster).filter((cluster) => root(cluster) === cluster && !isWrong(cluster));
}

function change(what) {
  what();
  try {
    localStorage.setItem(storedAs, JSON.stringify(made));
  } catch {
    // A browser that keeps nothing: the download does.
  }
  document.dispatchEvent(new Event("names"));
}

function nameCluster(cluster, name) {
  change(() => {
    if (name) made.names[cluster] = name;
    else delete made.names[cluster];
  });
}

function merge(cluster, other) {
  change(() => {
    delete made.merged[cluster];
    if (other !== cluster && root(other) !== cluster) made.merged[cluster] = root(other);
  });
}

function markWrong(cluster, wrong) {
  change(() => {
    made.wrong = made.wrong.filter((each) => each !== cluster);
    if (wrong) made.wrong.push(cluster);
  });
}

function move(image, cluster) {
  change(() => {
    if (cluster === root(run.cluster[image])) delete made.moved[image];
    else made.moved[image] = cluster;
  });
}

// Whether something was made that the run does not have.
function isNew() {
  const said = (names) => JSON.stringify(Object.keys(run.names).map((key) => Object.entries(names[key]).sort()));
  return said(made) !== said(run.names);
}

function takeBack() {
  change(() => Object.assign(made, structuredClone(run.names)));
}

function problemOf(name) {
  if (/^[=+\-@]/.test(name)) return "A spreadsheet would take this for a formula: begin with another character.";
  if (/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\u2028\u2029]/u.test(name.replace(/[\u200c\u200d]/g, ""))) {
    return "It has a character that cannot be shown.";
  }
  return "";
}

function download() {
  const content = { format: "imc-names", version: 1, model: run.model, images: run.images, clusters: run.sizes.length };
  const text = JSON.stringify({ ...content, ...made }, null, 2) + "\n";
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: address, download: "names.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function summary() {
  const parts = [
    [Object.keys(made.names).length, "named"],
    [Object.keys(made.merged).length, "merged"],
    [made.wrong.length, "wrong"],
    [Object.keys(made.moved).length, "moved"],
  ];
  return parts.filter(([count]) => count).map(([count, what]) => `${count} ${what}`).join(", ");
}

// A list of clusters to choose from; filled when it is asked for, since there may be a thousand of them.
function chooser(label, first, chosen, without = -1) {
  const select = element("select", { "aria-label": label }, element("option", { value: "" }, first));
  const fill = () => {
    const own = select.value;
    const options = choices().filter((cluster) => cluster !== without).map((cluster) => element("option", { value: cluster }, titleOf(cluster)));
    select.replaceChildren(element("option", { value: "" }, first), ...options);
    select.value = own;
  };
  select.addEventListener("pointerdown", fill);
  select.addEventListener("focus", fill);
  select.addEventListener("change", () => {
    const value = select.value;
    select.value = "";
    if (value !== "") chosen(Number(value));
  });
  return select;
}

document.addEventListener("names", () => {
  for (const each of document.querySelectorAll(".title[data-cluster]")) {
    const title = titleOf(Number(each.dataset.cluster));
    if (each.textContent !== title) each.textContent = title;
  }
});
