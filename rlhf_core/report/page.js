"use strict";
// Draws the figures in the reader's colours, again when these change, and one tooltip for all tokens.
(() => {
  const coarse = matchMedia("(pointer: coarse)").matches;
  const styles = getComputedStyle(document.documentElement);

  /** A figure with each "var(--name)" replaced by that variable's present value. */
  const themed = (node) => {
    if (typeof node === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(node);
      return name ? styles.getPropertyValue(name[1]).trim() : node;
    }
    if (Array.isArray(node)) return node.map(themed);
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, themed(value)]));
    }
    return node;
  };

  const draw = (plot) => {
    const figure = themed(plot.source);
    figure.layout.font.family = getComputedStyle(document.body).fontFamily;
    plot.height ??= Math.max(figure.layout.height, plot.clientHeight);
    figure.layout.height = plot.height;
    if (coarse) figure.layout.dragmode = false; // a finger on a chart scrolls the page
    Plotly.react(plot, figure.data, figure.layout, { displayModeBar: false, responsive: true, showTips: false });
  };

  const visible = (plot) => !plot.closest("details:not([open])");
  const plots = [...document.querySelectorAll(".plot")];
  for (const plot of plots) { // all heights first: a card stretches to its neighbour's, and the chart fills the card
    plot.source = JSON.parse(plot.querySelector("script").textContent);
    plot.style.minHeight = `${plot.source.layout.height}px`;
  }
  plots.filter(visible).forEach(draw);
  document.addEventListener("toggle", (event) => {
    event.target.querySelectorAll(".plot").forEach((plot) => visible(plot) && draw(plot));
  }, true);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.filter(visible).forEach(draw));

  const tip = document.getElementById("tip");
  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.("[data-tip]");
    tip.hidden = !token;
    if (!token) return;
    tip.textContent = token.dataset.tip;
    const box = token.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left), document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.transform = `translate(${left}px, ${Math.max(4, box.top - tip.offsetHeight - 6)}px)`;
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
