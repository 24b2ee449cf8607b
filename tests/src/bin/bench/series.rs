//! Measurements of one thing, and a table of them.

/// Times (or sizes) of one contestant.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value below which this part of all lies; between two values, it is interpolated.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let place = last as f64 * part;
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        low + (high - low) * place.fract()
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// Prints one line for each contestant: median, spread, and the ratio of the first contestant's median to it.
pub fn table(title: &str, unit: &str, rows: &[(String, Series)]) {
    println!("\n{title}");
    println!("  {:<16} {:>10} {:>10} {:>10}   coracle / it", "", "median", "p10", "p90");
    let ours = rows.first().map_or(f64::NAN, |(_, series)| series.median());
    for (name, series) in rows {
        let (median, low, high) = (series.median(), series.quantile(0.1), series.quantile(0.9));
        println!("  {name:<16} {median:>7.2} {unit} {low:>7.2} {unit} {high:>7.2} {unit}   {:.2}", ours / median);
    }
}
