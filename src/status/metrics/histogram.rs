//! Histograms that another service has counted, for a page that is made at each scrape. Network threads.

use prometheus::proto::{Bucket, Histogram as Counted, LabelPair, Metric, MetricFamily, MetricType};

/// One histogram of another service, with counts for each set of labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
    /// The buckets' upper bounds, rising; the infinite one is not among them.
    pub bounds: &'static [f64],
    pub samples: Vec<HistogramSample>,
}

/// Counts of one set of labels, no two samples of a histogram have the same.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramSample {
    /// As many as there are labels.
    pub labels: Vec<String>,
    /// As many as there are bounds: how many were within each.
    pub within: Vec<u64>,
    pub count: u64,
    pub sum: f64,
}

impl Histogram {
    /// `None` without a sample: a metric without a value is no metric in this format.
    pub(super) fn family(&self) -> Option<MetricFamily> {
        if self.samples.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(self.samples.iter().map(|sample| self.metric(sample)).collect());
        Some(family)
    }

    fn metric(&self, sample: &HistogramSample) -> Metric {
        let label = |(name, value): (&&str, &String)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.clone());
            pair
        };
        let bucket = |(bound, within): (&f64, &u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*within);
            bucket
        };
        let mut counted = Counted::default();
        counted.set_bucket(self.bounds.iter().zip(&sample.within).map(bucket).collect());
        counted.set_sample_count(sample.count);
        counted.set_sample_sum(sample.sum);
        let mut metric = Metric::default();
        metric.set_label(self.labels.iter().zip(&sample.labels).map(label).collect());
        metric.set_histogram(counted);
        metric
    }
}
