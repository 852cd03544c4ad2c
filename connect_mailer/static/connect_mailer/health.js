// Draws the plots of the health page from its own tables, and loads what SES says.
"use strict";
{
  const read = (id) => {
    const table = document.getElementById(id);
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    const columns = names.map((_, column) =>
      [...table.tBodies[0].rows].map((row) => {
        const value = row.cells[column].dataset.value;
        return column ? Number(value) : new Date(value.length > 10 ? value : value + "T00:00").getTime() / 1000;
      }),
    );
    return {names, columns};
  };

  const colour = (light, dark) => {
    const probe = document.createElement("span");
    probe.style.color = `light-dark(${light}, ${dark})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };

  const plots = [];
  let limit = 0;

  const draw = () => {
    const locale = document.documentElement.lang || undefined;
    const percent = new Intl.NumberFormat(locale, {style: "percent", maximumFractionDigits: 2});
    const number = new Intl.NumberFormat(locale, {maximumFractionDigits: 2});
    const time = new Intl.DateTimeFormat(locale, {hour: "numeric", minute: "2-digit"});
    const day = new Intl.DateTimeFormat(locale, {day: "numeric", month: "short"});
    const style = getComputedStyle(document.querySelector(".mailer-health"));
    const axis = {stroke: style.color, grid: {stroke: colour("#0001", "#fff2"), width: 1}, ticks: {show: false}};
    const blue = colour("#1d56b5", "#8fb8ff"), red = colour("#a81d1d", "#ff9d94"), amber = colour("#85510a", "#f0bd6b");
    for (const plot of plots.splice(0)) {
      plot.destroy();
    }
    for (const place of document.querySelectorAll(".mailer-plot")) {
      const {names, columns} = read(place.dataset.table);
      const isHour = place.dataset.kind === "hour";
      const moment = isHour ? time : day;
      const series = [{label: names[0], value: (_, value) => value === null ? "" : moment.format(value * 1000)}];
      series.push({label: names[1], scale: "y", stroke: blue, width: 2, fill: colour("#1d56b51f", "#8fb8ff2e"),
        value: (_, value) => value === null ? "" : number.format(value), points: {show: false}});
      const axes = [
        {...axis, values: (_, splits) => splits.map((value) => moment.format(value * 1000)), space: 70},
        {...axis, scale: "y", size: 56, values: (_, splits) => splits.map((value) => number.format(value))},
      ];
      if (isHour && limit) {
        columns.push(columns[0].map(() => limit));
        series.push({label: "SES", scale: "y", stroke: red, width: 1, dash: [6, 4], points: {show: false},
          value: (_, value) => value === null ? "" : number.format(value)});
      }
      if (!isHour) {
        for (const [label, stroke, dash] of [[names[2], red, []], [names[3], amber, [4, 3]]]) {
          series.push({label, scale: "%", stroke, dash, width: 2, points: {show: false},
            value: (_, value) => value === null ? "" : percent.format(value)});
        }
        axes.push({...axis, scale: "%", side: 1, size: 56, grid: {show: false},
          values: (_, splits) => splits.map((value) => percent.format(value))});
      }
      const range = (least) => (_, low, high) => [0, Math.max(high * 1.1, least)];
      plots.push(new uPlot({
        width: place.clientWidth, height: 205, series, axes,
        scales: {y: {range: range(1)}, "%": {range: range(0.01)}},
        legend: {live: true}, cursor: {drag: {x: false, y: false}},
      }, columns, place));
    }
  };

  const load = async () => {
    const account = document.getElementById("mailer-account");
    const place = account.querySelector("div");
    try {
      const answer = await fetch(account.dataset.url, {headers: {"X-Requested-With": "XMLHttpRequest"}});
      if (!answer.ok) {
        throw new Error(answer.status);
      }
      place.innerHTML = await answer.text();
      document.getElementById("mailer-doctor").replaceChildren(document.getElementById("mailer-findings"));
      limit = Number(document.getElementById("mailer-limit")?.value ?? 0);
      draw();
    } catch {
      place.textContent = account.dataset.failed;
    }
    account.dataset.loaded = "";
  };

  draw();
  load();
  // The colours are drawn: again, when they or the width change.
  let later;
  const again = () => {
    clearTimeout(later);
    later = setTimeout(draw, 100);
  };
  addEventListener("resize", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new MutationObserver(again).observe(document.documentElement, {attributeFilter: ["data-theme"]});
}
